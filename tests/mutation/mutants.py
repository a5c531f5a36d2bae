"""Harmful changes that a careless engineer could make, and the tests that must notice each.

`python -m tests.mutation.run` applies them one at a time (see CONTRIBUTING.md). ``old`` stands
exactly once in ``file``; a test of the suite holds the list to that, and to tests that exist. A
mutant that no test can notice says why in ``survives``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One replacement in one file."""

    file: str
    """Relative to the checkout."""
    old: str
    new: str
    tests: tuple[str, ...]
    """The fastest that notice it, as pytest takes them."""
    why: str
    """What harm it does, in one line."""
    survives: str = ""
    """Why no test notices it."""

    @property
    def room(self) -> str:
        """The package it lies in; ``base`` for the modules at the top."""
        first, *rest = self.file.split("/")
        if first != "effcompress":
            return first
        return rest[0] if len(rest) > 1 else "base"


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "effcompress/in_memory/batches.py",
        "kept = slice(int(places[0]), int(places[-1]) + 1)",
        "kept = slice(0, int(places[-1]) + 1)",
        ("tests/in_memory/test_steps.py::test_padding_is_taken_off_and_lengths_may_differ",),
        "padding on the left is measured as text",
    ),
    Mutant(
        "effcompress/runner/run.py",
        'checkpoints", recipe.save.keep_after, log)',
        'checkpoints", recipe.save.keep, log)',
        ("tests/runner/test_checkpoints.py::test_a_finished_run_keeps_as_many_as_asked",),
        "gigabytes of checkpoints stay behind a finished run",
    ),
    Mutant(
        "effcompress/launcher.py",
        'if not number or (number == "0" and not any(os.environ.get(name) for name in _STEP)):',
        "if not number:",
        ("tests/test_launcher.py::test_a_shell_and_a_single_task_are_alone",),
        "a command of a batch script waits for tasks that were never started",
    ),
    Mutant(
        "effcompress/launcher.py",
        "    if size % tasks:",
        "    if size < tasks:",
        ("tests/test_launcher.py::test_contradictions_are_refused",),
        "a WORLD_SIZE that no launcher of these tasks can have made is believed",
    ),
    Mutant(
        "effcompress/launcher.py",
        "    if host := first_of(nodes) or os.environ",
        "    if host := os.environ",
        ("tests/test_launcher.py",),
        "tasks look for rank 0 on the login node",
    ),
    Mutant(
        "effcompress/estimate/disk.py",
        "recipe.save.keep + 1 if",
        "recipe.save.keep if",
        ("tests/estimate/test_disk.py::test_the_papers_run",),
        "the checkpoint under way does not fit on the disk",
    ),
    Mutant(
        "effcompress/commands/new.py",
        "    if name in taken:",
        "    if False:",
        ("tests/commands/test_new.py::test_names_that_cannot_be",),
        "a plugin is written that cannot be registered",
    ),
    Mutant(
        "effcompress/runner/branches.py",
        "with torch.random.fork_rng(devices):",
        "with suppress():",
        ("tests/runner/test_at_sizes.py::test_the_run_is_what_it_is_without[[norm_gain]]",),
        "a run goes on with the random numbers of a size",
    ),
    Mutant(
        "effcompress/runner/branches.py",
        "with closing(own), _as_before(state, before.values), writer as keep:",
        "with closing(own), writer as keep:",
        (
            "tests/runner/test_at_sizes.py::test_of_one_cut_a_size_is_the_run_to_that_size[searched]",
        ),
        "a size has the shape that was searched for the target",
    ),
    Mutant(
        "effcompress/runner/branches.py",
        "export=replace(recipe.export, at=None, continued=None),",
        "export=recipe.export,",
        ("tests/runner/test_at_sizes.py::test_the_folder_of_a_size_is_a_run",),
        "a size would write sizes",
    ),
    Mutant(
        "effcompress/runner/branches.py",
        "decay = more / (tokens + more)",
        "decay = 0.0",
        ("tests/runner/test_at_sizes.py::test_it_trains_on_at_a_rate_that_falls",),
        "the rate of a size does not fall",
    ),
    Mutant(
        "effcompress/runner/measuring.py",
        "found[name] = loss() - whole",
        "found[name] = loss()",
        ("tests/plugins/test_two_ssp.py::test_the_loss_is_that_of_a_model_without",),
        "a loss is taken for a rise of the loss",
    ),
    Mutant(
        "plugins/two_ssp.py",
        "norm_I = x.square().sum(0).sqrt()",
        "norm_I = x.square().mean(0).sqrt()",
        ("tests/plugins/test_two_ssp.py::test_the_norm_is_averaged_over_sequences",),
        "short sequences count as much as long ones",
    ),
    Mutant(
        "plugins/two_ssp.py",
        "return score_K + span * (begun_K == 1)",
        "return score_K",
        ("tests/plugins/test_two_ssp.py::test_width_goes_first_and_then_what_is_least",),
        "blocks go before widths",
    ),
    Mutant(
        "effcompress/network/shape_search.py",
        "least = math.ceil(most * (1 - fraction) - 1e-9)",
        "least = math.floor(most * (1 - fraction))",
        ("tests/network/test_shape_search.py::test_the_largest_shapes_of_the_grid",),
        "a search removes more of a width than it may",
    ),
    Mutant(
        "effcompress/network/shape_search.py",
        "key=lambda shape: (-shape.counted, -shape.params, *shape.units.values()),",
        "key=lambda shape: (shape.counted, -shape.params, *shape.units.values()),",
        ("tests/network/test_shape_search.py::test_the_largest_shapes_of_the_grid",),
        "a search tries the smallest shapes",
    ),
    Mutant(
        "effcompress/network/pruned_model.py",
        "                norm.epsilon = epsilon\n            attend(",
        "                pass\n            attend(",
        ("tests/network/test_shape_search.py::test_a_trial_leaves_no_trace",),
        "norms keep the epsilon of a shape that was only tried",
    ),
    Mutant(
        "effcompress/runner/search.py",
        "best = min(tried, key=lambda shape: shape.loss)",
        "best = min(tried, key=lambda shape: shape.params)",
        ("tests/runner/test_search.py::test_the_shape_of_the_lowest_loss_is_taken",),
        "the smallest shape is taken, not the best",
    ),
    Mutant(
        "effcompress/runner/search.py",
        "draw=OTHER_DRAW)",
        "draw=0)",
        ("tests/runner/test_search.py::test_the_record_names_the_text_of_the_search",),
        "shapes are tried on the text that units are ranked on",
    ),
    Mutant(
        "effcompress/types.py",
        "names = self.absent | frozenset(gone)",
        "names = frozenset(gone)",
        (
            (
                "tests/test_architecture.py::test_what_went_stays_away_and_layers_take_their_bl"
                "ocks_along"
            ),
        ),
        "a block that went is still there after the next cut",
    ),
    Mutant(
        "effcompress/checkpoint/export.py",
        (
            'made = sorted(filter(Path.is_file, work.rglob("*")), '
            'key=lambda f: f.name == "config.json")'
        ),
        'made = sorted(filter(Path.is_file, work.rglob("*")))',
        ("tests/checkpoint/test_export.py::test_a_folder_that_dies_half_way_is_no_model",),
        "config.json is moved first, so half a model loads",
    ),
    Mutant(
        "effcompress/checkpoint/export.py",
        '(folder / "config.json").unlink(missing_ok=True)',
        "pass",
        ("tests/checkpoint/test_export.py::test_a_folder_that_dies_half_way_is_no_model",),
        "an old config.json beside new weights",
    ),
    Mutant(
        "effcompress/checkpoint/export.py",
        "if wanted.get(name) != given.get(name):",
        "if name in given and wanted.get(name) != given.get(name):",
        ("tests/checkpoint/test_export.py::test_names_and_shapes_must_be_those_of_the_class",),
        "a missing weight is exported as random numbers",
    ),
    Mutant(
        "effcompress/checkpoint/files.py",
        "if found != self._sums[name]:",
        "if False:",
        ("tests/export/test_files.py::test_what_reads_back_otherwise_is_an_error",),
        "weights that a disk changed are exported",
    ),
    Mutant(
        "effcompress/checkpoint/files.py",
        "sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))",
        "sorted(tensors)",
        (
            (
                "tests/export/test_files.py::test_types_of_several_widths_lie_at_multiples_of_t"
                "heir_width"
            ),
        ),
        "tensors of a file are not aligned",
    ),
    Mutant(
        "effcompress/model/by_rows.py",
        'if self.found[id(kept)][2] == self.found[id(other)][2] != b"":',
        "if True:",
        ("tests/model/test_by_rows.py::test_a_tied_matrix_that_is_stored_twice",),
        "matrices that differ are tied, where each process reads its rows",
    ),
    Mutant(
        "effcompress/model/by_rows.py",
        "elif one.partial and not (first and name in {*_ELEMENTWISE, *_OVERWRITE}):",
        "elif False:",
        ("tests/model/test_by_rows.py::test_what_needs_all_rows_is_not_drawn_by_rows",),
        "random weights are computed from rows that were forgotten",
    ),
    Mutant(
        "effcompress/checkpoint/save.py",
        "if copy.read(len(part)) != part:",
        "if False:",
        ("tests/checkpoint/test_save.py::test_another_process_goes_on_with_the_copy",),
        "after a resume the copy of the record keeps lines that were taken back",
    ),
    Mutant(
        "effcompress/checkpoint/save.py",
        'if found != said.get("sha256", found):',
        "if False:",
        ("tests/checkpoint/test_save.py::test_a_damaged_newest_falls_back_and_says_so[flip]",),
        "the hash of a checkpoint is not compared",
    ),
    Mutant(
        "effcompress/checkpoint/save.py",
        "if not same_bits(file.get_tensor(name), tensor.cpu()):",
        "if False:",
        (
            (
                "tests/checkpoint/test_save.py::test_what_reads_back_as_something_else_is_no_ch"
                "eckpoint"
            ),
        ),
        "what was written is not read back",
    ),
    Mutant(
        "effcompress/checkpoint/save.py",
        'if size < said["bytes"] or (size > said["bytes"] and not text):',
        'if size < said["bytes"] - 64:',
        ("tests/checkpoint/test_save.py::test_what_earlier_versions_wrote_is_read",),
        "a checkpoint that is a little short counts as whole",
    ),
    Mutant(
        "effcompress/checkpoint/proof.py",
        "TOLERANCE = 1e-5",
        "TOLERANCE = 1e-2",
        ("tests/checkpoint/test_proof_answers.py::test_one_logit_too_far_is_none",),
        "the proof lets a thousandfold difference pass",
    ),
    Mutant(
        "effcompress/checkpoint/proof.py",
        "tokens_equal = torch.equal(said_T, greedy_T) and",
        "tokens_equal = True and",
        ("tests/checkpoint/test_proof_answers.py::test_one_other_token_is_none",),
        "the proof ignores the tokens",
    ),
    Mutant(
        "effcompress/checkpoint/proof.py",
        'cache_equal = torch.equal(said_T, fresh["uncached_T"])',
        "cache_equal = True",
        ("tests/checkpoint/test_proof_answers.py::test_one_other_token_is_none",),
        "the proof ignores the cache",
    ),
    Mutant(
        "effcompress/checkpoint/proof.py",
        "max(TOLERANCE, 2 * rounding(module, ids_BT))",
        "max(TOLERANCE, 2000 * rounding(module, ids_BT))",
        ("tests/checkpoint/test_proof_answers.py::test_one_logit_too_far_is_none",),
        "a thousand times what rounding does passes the proof",
    ),
    Mutant(
        "effcompress/checkpoint/save.py",
        "for path in reversed(found):",
        "for path in found:",
        ("tests/checkpoint/test_save.py::test_round_trip_keeps_the_newest",),
        "a run resumes from its oldest checkpoint",
    ),
    Mutant(
        "effcompress/checkpoint/save.py",
        "                _check(file, said)\n            if like",
        "                pass\n            if like",
        ("tests/checkpoint/test_save.py::test_a_damaged_newest_falls_back_and_says_so[flip]",),
        "a damaged checkpoint is taken",
    ),
    Mutant(
        "effcompress/checkpoint/save.py",
        "if _hash_of(values) != said:",
        "if False:",
        ("tests/checkpoint/test_save.py::test_values_that_were_changed_are_no_checkpoint",),
        "the values of a checkpoint are not compared with their hash",
    ),
    Mutant(
        "effcompress/runner/source_model.py",
        "require_same(state.provenance, provenance_of(recipe, source))",
        "pass",
        (("tests/runner/test_checkpoints.py::test_a_teacher_that_changed_meanwhile_is_refused"),),
        "a teacher may be another model than the run began with",
    ),
    Mutant(
        "effcompress/checkpoint/save.py",
        "for old in steps(folder)[:-keep]:",
        "for old in steps(folder)[: -keep - 1]:",
        ("tests/checkpoint/test_save.py::test_round_trip_keeps_the_newest",),
        "one checkpoint more is kept than asked for",
    ),
    Mutant(
        "effcompress/checkpoint/save.py",
        "for old in steps(folder)[:-keep]:",
        "for old in steps(folder)[keep:]:",
        ("tests/checkpoint/test_save.py::test_round_trip_keeps_the_newest",),
        "the oldest checkpoints are kept, the newest deleted",
    ),
    Mutant(
        "effcompress/checkpoint/save.py",
        'work = folder / f".writing-{os.getpid()}"',
        'work = folder / f"step-99999999-{os.getpid()}"',
        (
            (
                "tests/checkpoint/test_save.py::test_nothing_counts_before_it_is_whole_and_on_t"
                "he_disk"
            ),
        ),
        "a half-written checkpoint counts as the newest",
    ),
    Mutant(
        "effcompress/checkpoint/save.py",
        "flush(work / STATE, work)",
        "pass",
        (
            (
                "tests/checkpoint/test_save.py::test_nothing_counts_before_it_is_whole_and_on_t"
                "he_disk"
            ),
        ),
        "the state is not on the disk when the folder is renamed",
    ),
    Mutant(
        "effcompress/checkpoint/save.py",
        "for newer in (p for p in steps(folder) if p.name > target.name):",
        "for newer in ():",
        ("tests/checkpoint/test_save.py::test_damaged_ones_that_were_passed_over_go",),
        "damaged newer checkpoints stay and are taken next time",
    ),
    Mutant(
        "effcompress/cli/arguments.py",
        "splitlines()[: None if isinstance(error, CoverageError) else 3]",
        "splitlines()[: None if isinstance(error, CoverageError) else 1]",
        ("tests/cli/test_main.py::test_a_failed_run_exits_with_one_and_three_lines",),
        "errors do not say what to type",
    ),
    Mutant(
        "effcompress/cli/signals.py",
        "signal.signal(number, former)",
        "pass",
        ("tests/runner/test_signals.py::test_former_handlers_come_back",),
        "handlers of signals stay after a run",
    ),
    Mutant(
        "effcompress/commands/bench.py",
        "vocabulary = min(int(config.vocab_size) for config in configs)",
        "vocabulary = max(int(config.vocab_size) for config in configs)",
        ("tests/commands/test_bench.py::test_prompts_hold_tokens_that_every_model_has",),
        "prompts hold tokens that one model lacks",
    ),
    Mutant(
        "effcompress/commands/bench.py",
        '(load.prompt if phase == "prefill" else load.new - 1)',
        '(load.prompt if phase == "prefill" else load.new)',
        ("tests/commands/test_bench.py::test_rates_by_hand",),
        "the first new token counts twice",
    ),
    Mutant(
        "effcompress/commands/memory_probe.py",
        "else weights + peak - before",
        "else peak",
        ("tests/commands/test_bench.py::test_the_peak_is_the_weights_and_what_grew",),
        "Python and its libraries count as the model",
    ),
    Mutant(
        "effcompress/compare/compare.py",
        "rounds = itertools.zip_longest(*(entry.jobs for entry in entries))",
        "rounds = [[job for entry in entries for job in entry.jobs]]",
        ("tests/compare/test_compare.py::test_an_interrupted_comparison_continues",),
        "one method runs all its seeds before the next begins",
    ),
    Mutant(
        "effcompress/compare/entries.py",
        'OWN = ("seed", "name")',
        'OWN = ("name",)',
        ("tests/compare/test_compare.py::test_folders_of_runs_take_part",),
        "seeds of one recipe count as methods of their own",
    ),
    Mutant(
        "effcompress/compare/entries.py",
        'overrides = (*overrides, f"seed={seed}")',
        "overrides = (*overrides,)",
        ("tests/compare/test_compare.py::test_commands_are_those_that_one_would_type",),
        "all seeds run with the recipe's own",
    ),
    Mutant(
        "effcompress/compare/processes.py",
        'succeeded = end is not None and end.status == "success"',
        "succeeded = end is not None",
        ("tests/compare/test_compare.py::test_the_reason_of_a_process",),
        "a run that failed late is not run again",
    ),
    Mutant(
        "effcompress/compare/processes.py",
        "cores() // at_once",
        "cores()",
        ("tests/compare/test_compare.py::test_processes_at_the_same_time_divide_the_cores",),
        "each of the processes takes all cores",
    ),
    Mutant(
        "effcompress/compare/processes.py",
        "if code < 0:",
        "if code < -999:",
        ("tests/compare/test_compare.py::test_the_reason_of_a_process",),
        "a killed run has no reason",
    ),
    Mutant(
        "effcompress/data/corpus.py",
        "domain.weight / total for name",
        "1 / len(spec.domains) for name",
        ("tests/data/test_stream.py::test_the_mixture_and_its_labels",),
        "weights of domains are ignored",
    ),
    Mutant(
        "effcompress/data/corpus.py",
        "rows.append((windows, shuffled(number, windows.count, key)))",
        "rows.append((windows, number))",
        ("tests/data/test_stream.py::test_calibration_is_training_text_mixed_by_weight",),
        "calibration takes the first windows whatever the seed",
    ),
    Mutant(
        "effcompress/data/corpus.py",
        (
            "domain.store.ensure(CHOICE * needed * size, 0, self._talk)\n"
            '        windows = _sequences(self._spec, domain.store, "train"'
        ),
        (
            "domain.store.ensure(CHOICE * needed * size, 0, self._talk)\n"
            '        windows = _sequences(self._spec, domain.store, "heldout"'
        ),
        ("tests/data/test_stream.py::test_calibration_without_training",),
        "calibration reads held-out text",
    ),
    Mutant(
        "effcompress/data/corpus.py",
        ("if needed <= domain.train.count:\n            return domain.train"),
        ("if needed <= domain.heldout.count:\n            return domain.heldout"),
        ("tests/data/test_stream.py::test_calibration_is_training_text_mixed_by_weight",),
        "calibration is drawn from held-out text",
    ),
    Mutant(
        "effcompress/data/corpus.py",
        'content = {name: (d["content"], d["share"])',
        'content = {name: (d["content"], 1)',
        ("tests/data/test_stream.py::test_a_fingerprint_depends_on_everything_that_is_read",),
        "two mixtures of the same text have one fingerprint",
    ),
    Mutant(
        "effcompress/data/corpus.py",
        "facts = [content, self._tokenizer,",
        'facts = [content, "",',
        ("tests/data/test_tokens.py::test_another_tokenizer_or_text_is_another_key",),
        "two tokenizers have one fingerprint",
    ),
    Mutant(
        "effcompress/data/corpus.py",
        "seed = self._seed if seed is None else seed",
        "seed = 0 if seed is None else seed",
        ("tests/data/test_stream.py::test_the_seed_of_the_run_is_the_default",),
        "calibration ignores the seed of the run",
    ),
    Mutant(
        "effcompress/data/stream.py",
        "self._owed[name] += self.fractions[name] * n - count",
        "self._owed[name] = self.fractions[name] * n - count",
        ("tests/data/test_mixture.py::test_changes_to_the_same_fractions_are_none",),
        "what was owed before the last change of the mixture is forgotten",
    ),
    Mutant(
        "effcompress/data/stream.py",
        'self._since = {name: int(held["since"][name]) for name in self._names}',
        "self._since = dict(self._counts)",
        ("tests/data/test_mixture.py::test_resuming_anywhere_is_bit_identical",),
        "a resumed mixture counts anew",
    ),
    Mutant(
        "effcompress/data/corpus.py",
        "most = max(fraction, spec.mixture.text) if spec.mixture else fraction",
        "most = fraction",
        ("tests/data/test_mixture.py::test_text_is_prepared_for_any_mixture",),
        "a domain whose weight grows reads its text again, though there is more",
    ),
    Mutant(
        "effcompress/runner/mixture.py",
        "or state.tokens >= state.total_tokens",
        "or False",
        ("tests/runner/test_mixture.py::test_a_constant_mixture_is_the_run_without_one",),
        "losses are measured after the last step, for nothing",
    ),
    Mutant(
        "effcompress/runner/mixture.py",
        "[total + more * loss, rows + more]",
        "[total + loss, rows + 1]",
        ("tests/runner/test_mixture.py::test_a_mean_over_sequences_not_over_steps",),
        "a step in which a domain gave one sequence counts as much as one in which it gave ten",
    ),
    Mutant(
        "effcompress/runner/mixture.py",
        "behind = state.recipe.evaluate.sequences",
        "behind = 0",
        ("tests/runner/test_mixture.py::test_losses_are_those_of_the_model_as_it_is",),
        "what a result is judged by steers its training",
    ),
    Mutant(
        "effcompress/data/corpus.py",
        "begin = min(behind, max(0, end - sequences))",
        "begin = behind",
        ("tests/runner/test_mixture.py::test_what_is_evaluated_does_not_steer_training",),
        "a domain with little held-out text has none for the mixture",
    ),
    Mutant(
        "effcompress/runner/mixture.py",
        "return dict(zip(names, (found_D / total).tolist(), strict=True))",
        "return dict(zip(names, found_D.tolist(), strict=True))",
        ("tests/runner/test_mixture.py::test_what_a_plugin_returns_is_checked",),
        "weights drift away from a sum of 1",
    ),
    Mutant(
        "effcompress/runner/run.py",
        "                _prune_if_due(state, log)\n            mixture.update_if_due(state, log)",
        (
            "                mixture.update_if_due(state, log)\n"
            "                _prune_if_due(state, log)"
        ),
        ("tests/runner/test_mixture.py::test_it_rides_on_pruning_aware_training",),
        "losses are measured in front of the cut of a step",
    ),
    Mutant(
        "effcompress/data/tokens.py",
        "if _hash(text) < holdout * 2**64",
        "if _hash(text) >= holdout * 2**64",
        (
            (
                "tests/data/test_stream.py::test_an_epoch_reads_every_window_once_each_time_in_"
                "another_order"
            ),
        ),
        "training and held-out text are exchanged",
    ),
    Mutant(
        "effcompress/data/stream.py",
        "return length - (bos is not None)",
        "return length",
        ("tests/data/test_stream.py::test_windows_tile_the_text[1]",),
        "windows with a BOS are one token too long",
    ),
    Mutant(
        "effcompress/data/stream.py",
        "text = self.tokens[number * size : (number + 1) * size]",
        "text = self.tokens[number * self.length : number * self.length + size]",
        ("tests/data/test_stream.py::test_windows_tile_the_text[1]",),
        "with a BOS, windows leave out a token each",
    ),
    Mutant(
        "effcompress/data/stream.py",
        "np.where(ids < 0, ~ids, ids), ids >= 0",
        "np.where(ids < 0, ~ids, ids), ids >= -1",
        ("tests/data/test_prompts.py::test_every_token_can_be_marked",),
        "prompts of token 0 are trained on",
    ),
    Mutant(
        "effcompress/data/stream.py",
        'key = f"train {self._seed} {name} {epoch}"',
        'key = f"train {self._seed} {name}"',
        (
            (
                "tests/data/test_stream.py::test_an_epoch_reads_every_window_once_each_time_in_"
                "another_order"
            ),
        ),
        "every epoch reads in the same order",
    ),
    Mutant(
        "effcompress/data/stream.py",
        'key = f"train {self._seed} {name} {epoch}"',
        'key = f"train 0 {name} {epoch}"',
        (
            (
                "tests/data/test_stream.py::test_an_epoch_reads_every_window_once_each_time_in_"
                "another_order"
            ),
        ),
        "the seed does not change the order",
    ),
    Mutant(
        "effcompress/data/stream.py",
        ("self._counts = before\n            raise"),
        "raise",
        ("tests/data/test_stream.py::test_dry_domain_stops",),
        "the position moves although the batch was refused",
    ),
    Mutant(
        "effcompress/data/stream.py",
        'for key in ("seed", "windows"):',
        'for key in ("seed",):',
        ("tests/data/test_stream.py::test_a_position_of_other_data_is_refused",),
        "a position in other text is taken",
    ),
    Mutant(
        "effcompress/data/stream.py",
        'key = f"train {self._seed} {name} {epoch}"',
        'key = f"train {self._seed} {epoch}"',
        ("tests/data/test_stream.py::test_domains_are_shuffled_independently",),
        "all domains are read in one order",
    ),
    Mutant(
        "effcompress/data/corpus.py",
        "found |= np.isin(",
        "found = np.isin(",
        ("tests/data/test_overlap.py::test_the_same_lines_in_another_order[7]",),
        "copies in all but the last stretch of the training text are not counted",
    ),
    Mutant(
        "effcompress/data/stream.py",
        "inside = self.ends[first:last].astype(np.int64) - number * size",
        "inside = self.ends[first + 1 : last].astype(np.int64) - number * size",
        ("tests/data/test_isolation.py::test_positions_restart_at_documents_and_at_windows",),
        "the second document of a sequence sees the first",
    ),
    Mutant(
        "effcompress/data/stream.py",
        "trained_NT[:, 1:] &= positions_NT[:, 1:] > 0",
        "pass",
        ("tests/data/test_isolation.py::test_documents_end_where_the_cache_says",),
        "the first token of a document is predicted from the one before it",
    ),
    Mutant(
        "effcompress/train/step.py",
        "objective(module, ids_BT, trained_BT, positions_BT)",
        "objective(module, ids_BT, trained_BT, None)",
        ("tests/data/test_isolation.py::test_gradients_are_those_of_the_documents",),
        "training ignores the borders of documents",
    ),
    Mutant(
        "effcompress/data/chat.py",
        "asked = tokenizer.render(turns[:n], generation=True)",
        "asked = tokenizer.render(turns[:n], generation=False)",
        ("tests/data/test_chat.py::test_answers_are_learned_up_to_their_end_token",),
        "the words that ask for an answer are learned",
    ),
    Mutant(
        "effcompress/data/chat.py",
        "if not (answered.startswith(asked) and whole.startswith(answered)):",
        "if not answered.startswith(asked):",
        ("tests/data/test_chat.py::test_a_template_that_changes_what_it_wrote_is_refused",),
        "a template that rewrites earlier answers is trained on at the wrong places",
    ),
    Mutant(
        "effcompress/data/tokens.py",
        "(at_T2[:, 0] < end) & (at_T2[:, 1] > start)",
        "(at_T2[:, 0] <= end) & (at_T2[:, 1] >= start)",
        ("tests/data/test_chat.py::test_answers_are_learned_up_to_their_end_token",),
        "the last token of a prompt is learned",
    ),
    Mutant(
        "effcompress/data/stream.py",
        "ids_T = np.full(self.length, ~self.pad, dtype=np.int64)",
        "ids_T = np.full(self.length, self.pad, dtype=np.int64)",
        ("tests/data/test_rows.py::test_a_row_is_a_prompt_an_output_and_eos",),
        "padding is learned",
    ),
    Mutant(
        "effcompress/data/stream.py",
        "every = ((n, document(tokens, ends, n)[first:size]) for n in range(len(ends)))",
        "every = ((n, document(tokens, ends, n)[first:]) for n in range(len(ends)))",
        ("tests/data/test_rows.py::test_pairs_without_a_label_are_dropped_counted_and_named",),
        "rows whose output is cut off stay without a label",
    ),
    Mutant(
        "effcompress/data/tokens.py",
        '"tokenizer": tokenizer.fingerprint,',
        '"tokenizer": "",',
        ("tests/data/test_tokens.py::test_another_tokenizer_or_text_is_another_key",),
        "two tokenizers share one cache",
    ),
    Mutant(
        "effcompress/data/tokens.py",
        '"holdout": holdout,',
        "",
        ("tests/data/test_tokens.py::test_another_tokenizer_or_text_is_another_key",),
        "two holdouts share one cache, so held-out text is trained on",
    ),
    Mutant(
        "effcompress/data/tokens.py",
        "arrays = [np.append(ids, self._ending(ids, eos)) for ids in arrays]",
        "pass",
        ("tests/data/test_tokens.py::test_documents_are_joined_by_eos_and_no_bos_occurs",),
        "documents are not separated",
    ),
    Mutant(
        "effcompress/distributed/deal.py",
        "each = -(-count // size)",
        "each = count // size",
        ("tests/distributed/test_world.py",),
        "rows at the end belong to no process",
    ),
    Mutant(
        "effcompress/distributed/deal.py",
        "self.bytes[self.holder[name]] += size",
        "pass",
        ("tests/distributed/test_dealing.py::test_a_deal_is_even_and_lasts",),
        "one process holds all Gram matrices",
    ),
    Mutant(
        "effcompress/measure/grams.py",
        "part = x_TI.float() * (tokens * self.world.size) ** -0.5",
        "part = x_TI.float() * tokens**-0.5",
        ("tests/distributed/test_dealing.py::test_each_matrix_is_a_mean_and_has_one_holder",),
        "a dealt Gram matrix is a sum over processes, not a mean",
    ),
    Mutant(
        "effcompress/measure/grams.py",
        "start = k * at_once[self.world.rank]",
        "start = 0",
        ("tests/distributed/test_dealing.py::test_each_matrix_is_a_mean_and_has_one_holder",),
        "all rows of a matrix that arrives in parts are added to the first",
    ),
    Mutant(
        "effcompress/removal/compensate.py",
        "    world.each(solve)  # an error of one is raised by all",
        "    solve()",
        ("tests/distributed/test_dealing.py::test_what_two_processes_make_of_it",),
        "the others wait for a process whose repair failed",
    ),
    Mutant(
        "effcompress/distributed/shards.py",
        "torch.float32, cast_forward_inputs=False)",
        "torch.float32, cast_forward_inputs=True)",
        ("tests/distributed/test_dealing.py::test_what_two_processes_make_of_it",),
        "the residual stream is rounded to bfloat16 before every layer",
    ),
    Mutant(
        "effcompress/train/step.py",
        "norm = world.sums([norm**2], shard_group(parameters))[0] ** 0.5",
        "norm = world.sums([norm**2])[0] ** 0.5",
        ("tests/distributed/test_replicas.py::test_two_times_two_processes_do_what_one_does",),
        "the norm of the gradient counts every replica",
    ),
    Mutant(
        "effcompress/estimate/communication.py",
        "(processes % replicas == 0 and processes > replicas)",
        "processes % replicas == 0",
        ("tests/distributed/test_replicas.py::test_replicas_are_of_equal_size",),
        "replicas of one process each shard nothing",
    ),
    Mutant(
        "effcompress/estimate/memory.py",
        "return means + max(held.values(), default=0)",
        "return means + sum(held.values())",
        ("tests/distributed/test_replicas.py::test_plan_counts_what_they_hold",),
        "plan counts Gram matrices of other processes",
    ),
    Mutant(
        "effcompress/distributed/rows.py",
        "index = index - first_row(tensor)",
        "pass",
        ("tests/distributed/test_shards.py::test_sixty_steps_with_cuts_of_all_kinds",),
        "rows of the wrong process are cleared",
    ),
    Mutant(
        "effcompress/distributed/gather.py",
        "write_back(before.detach(), now.detach())",
        "pass",
        ("tests/distributed/test_shards.py::test_zeros_are_those_of_one_process",),
        "what was changed in a gathered layer is lost",
    ),
    Mutant(
        "effcompress/estimate/calibration.py",
        "sent = (1 + backward) * passes * model",
        "sent = passes * model",
        (
            (
                "tests/distributed/test_traffic.py::test_bytes_and_peaks_where_calibration_text_is_r"
                "ead"
            ),
        ),
        "what the backward gathers is not counted",
    ),
    Mutant(
        "effcompress/saliency/score.py",
        "uniform.skip_to(shape[0])",
        "pass",
        ("tests/saliency/test_score.py::test_random_numbers_are_those_of_one_process",),
        "random numbers of later weights depend on the number of processes",
    ),
    Mutant(
        "effcompress/distributed/shards.py",
        "unit.set_gradient_divide_factor(1.0)",
        "pass",
        ("tests/distributed/test_shards.py::test_sixty_steps_with_cuts_of_all_kinds",),
        "shards divide gradients by the processes",
    ),
    Mutant(
        "effcompress/distributed/rows.py",
        "here.add_(value[start : start + here.shape[0]])",
        "here.add_(value[: here.shape[0]])",
        ("tests/distributed/test_shards_recover.py::test_recovery_and_tasks",),
        "every process adds the first rows of an update",
    ),
    Mutant(
        "effcompress/distributed/world.py",
        "total.split([p.numel() for p in bucket.parameters()])",
        "[total]",
        ("tests/distributed/test_restarts.py::test_four_replicas_add_up_as_before",),
        "a resumed run of more than two processes rounds differently",
    ),
    Mutant(
        "effcompress/distributed/meeting.py",
        'prefix = f"{_STARTS}/{uuid.uuid4().hex}"',
        "prefix = _STARTS",
        ("tests/distributed/test_meeting.py::test_every_start_has_keys_of_its_own",),
        "a restarted process looks for others at the addresses of dead ones",
    ),
    Mutant(
        "effcompress/distributed/world.py",
        "return slice(self.rank * each, (self.rank + 1) * each)",
        "return slice(0, each)",
        ("tests/distributed/test_world.py",),
        "every process computes the first rows",
    ),
    Mutant(
        "effcompress/distributed/world.py",
        "return self.sums([float(here)])[0] > 0",
        "return here",
        (
            (
                "tests/distributed/test_world.py::test_what_one_process_was_asked_all_were_aske"
                "d[False]"
            ),
        ),
        "one process does not hear that another was asked to stop",
    ),
    Mutant(
        "effcompress/distributed/world.py",
        "return torch.futures.collect_all(futures).then(lambda _: total)",
        "return torch.futures.collect_all(futures).then(\n"
        "            lambda _: total / dist.get_world_size()\n"
        "        )",
        ("tests/distributed/test_two_processes.py::test_sixty_steps_with_cuts_of_all_kinds",),
        "gradients are divided by the processes once more",
    ),
    Mutant(
        "effcompress/runner/resources.py",
        "with Operations() as operations, once:",
        "with Operations() as operations:",
        ("tests/distributed/test_two_processes.py::test_operations_are_those_of_one_process",),
        "what every process computes alike counts once for each",
    ),
    Mutant(
        "effcompress/estimate/forecast.py",
        "more = _trained_on(recipe, flops, written)",
        "more = 0.0",
        ("tests/estimate/test_at_sizes.py::test_what_sizes_cost",),
        "the training of sizes costs nothing",
    ),
    Mutant(
        "effcompress/errors.py",
        ("exit_code = 1\n"),
        ("exit_code = 0\n"),
        ("tests/cli/test_main.py::test_a_failed_run_exits_with_one_and_three_lines",),
        "a failed run exits with 0",
    ),
    Mutant(
        "effcompress/errors.py",
        "return f\"{hint}Known: {', '.join(names)}.\"",
        "return f\"Known: {', '.join(names)}.\"",
        ("tests/cli/test_broken_recipes.py::test_broken_recipe",),
        "no near name is suggested",
    ),
    Mutant(
        "effcompress/estimate/communication.py",
        '"all_reduce": 2 * others / processes',
        '"all_reduce": others / processes',
        ("tests/commands/test_memory_probe.py::test_what_leaves_a_process_of_a_ring",),
        "an all-reduce goes around the ring once",
    ),
    Mutant(
        "effcompress/estimate/communication.py",
        "total += -(-rows // processes) * (count // rows)",
        "total += rows // processes * (count // rows)",
        ("tests/estimate/test_forecast.py::test_a_shard_is_as_long_as_the_longest",),
        "a shard is rounded down",
    ),
    Mutant(
        "effcompress/estimate/forecast.py",
        "total += flops.per_token(here.widths) * fraction * (there.tokens - here.tokens)",
        "total += flops.per_token(there.widths) * fraction * (there.tokens - here.tokens)",
        ("tests/estimate/test_forecast.py::test_every_step_costs_what_the_model_is_then",),
        "operations are those after the next cut",
    ),
    Mutant(
        "effcompress/estimate/feasibility.py",
        "if sized.target < lowest * (1 - TOLERANCE):",
        "if False:",
        ("tests/estimate/test_forecast.py::test_targets_out_of_reach",),
        "a target below what always remains is accepted",
    ),
    Mutant(
        "effcompress/estimate/feasibility.py",
        "weights, round(weights * spec.",
        "weights, int(weights * 0.5 * spec.",
        ("tests/contract/test_recipes_bind.py::test_recipe_binds_and_its_target_is_in_reach",),
        "the forecast of zeros is half of them",
    ),
    Mutant(
        "effcompress/estimate/flops.py",
        "return 3.0 * sum(part(wide) for part in self._parts)",
        "return 2.0 * sum(part(wide) for part in self._parts)",
        ("tests/estimate/test_flops.py::test_operations_are_those_that_are_counted[llama]",),
        "the backward costs as much as the forward",
    ),
    Mutant(
        "effcompress/estimate/flops.py",
        "pairs * length // 2",
        "pairs * length",
        ("tests/estimate/test_flops.py::test_operations_are_those_that_are_counted[llama]",),
        "masked pairs of attention count",
    ),
    Mutant(
        "effcompress/estimate/flops.py",
        "pairs = 2 * sum(head_widths(axes, config, i))",
        "pairs = 4 * head_widths(axes, config, i)[0]",
        (
            "tests/contract/test_more_families.py::test_operations_are_those_that_are_counted"
            "[deepseek_v3]",
        ),
        "values of latent attention are taken to be as wide as its queries",
    ),
    Mutant(
        "effcompress/estimate/flops.py",
        "alike.setdefault(form, {})",
        "alike.setdefault(len(form), {})",
        ("tests/estimate/test_flops.py::test_layers_of_another_form_cost_what_they_cost",),
        "layers with as many matrices cost the same, whatever their sizes",
    ),
    Mutant(
        "effcompress/estimate/flops.py",
        "looked_up = tables[:1] if len(tables) > 1 else []",
        "looked_up = []",
        ("tests/estimate/test_forecast.py::test_an_embedding_is_only_looked_up",),
        "looking up an embedding costs operations",
    ),
    Mutant(
        "effcompress/estimate/memory.py",
        "teacher = taught(self.recipe) * self.found.axes.count() / self.shards",
        "teacher = taught(self.recipe) * self.found.axes.count()",
        ("tests/distributed/test_shards.py::test_plan_of_a_sharded_teacher",),
        "a sharded teacher counts as whole",
    ),
    Mutant(
        "effcompress/estimate/memory.py",
        "outputs=gram.outputs + rows",
        "outputs=rows",
        ("tests/commands/test_memory_probe.py::test_a_reader_for_each_gram_matrix",),
        "layers that share an input count once",
    ),
    Mutant(
        "effcompress/estimate/memory.py",
        "moments=2 * learned if loop else 0.0,",
        "moments=learned if loop else 0.0,",
        ("tests/commands/test_memory_probe.py::test_phases_by_hand",),
        "Adam keeps one moment",
    ),
    Mutant(
        "effcompress/estimate/schedule.py",
        "return -(-asked // per_step) * per_step if per_step else 0",
        "return asked // per_step * per_step if per_step else 0",
        ("tests/estimate/test_forecast.py::test_training_ends_with_a_whole_step",),
        "training stops short of the tokens asked for",
    ),
    Mutant(
        "effcompress/estimate/schedule.py",
        'first = int(reads_text(prune) and prune.measure.source == "training")',
        "first = 0",
        (
            (
                "tests/estimate/test_forecast.py::test_nothing_is_cut_before_it_was_measured[ta"
                "ylor-1]"
            ),
        ),
        "the forecast cuts before anything is measured",
    ),
    Mutant(
        "effcompress/evaluation/accuracy.py",
        '("acc_norm", "acc") if name in NORMALISED else ("acc",)',
        '("acc",)',
        (
            (
                "tests/evaluation/test_accuracy.py::test_the_number_that_counts[arc_challenge-a"
                "cc_norm]"
            ),
        ),
        "the papers' tasks with normalised accuracy are shown without",
    ),
    Mutant(
        "effcompress/evaluation/accuracy.py",
        "math.sqrt(math.fsum(error**2 for error in known)) / len(taken)",
        "math.fsum(known) / len(taken)",
        ("tests/evaluation/test_accuracy.py::test_the_mean_of_the_seven_leaves_others_out",),
        "errors of independent tasks are added",
    ),
    Mutant(
        "effcompress/evaluation/choices.py",
        "row.ends.append((index, tokens))",
        "row.ends.append((index, tokens[-1:]))",
        ("tests/evaluation/test_choices.py::test_agree_with_the_reference[llama-1]",),
        "only the last token of an answer counts",
    ),
    Mutant(
        "effcompress/evaluation/choices.py",
        "whole[-(max_length + 1) :]",
        "whole[: max_length + 1]",
        ("tests/evaluation/test_choices.py::test_what_is_too_long_loses_its_beginning",),
        "what is too long loses its end, the answer",
    ),
    Mutant(
        "effcompress/evaluation/choices.py",
        "(world.sums(each) for each in (total_N, greedy_N, cut_N))",
        "(total_N, greedy_N, cut_N)",
        ("tests/distributed/test_shards_recover.py::test_recovery_and_tasks",),
        "answers of other processes are impossible or certain",
    ),
    Mutant(
        "effcompress/evaluation/generate.py",
        "repetition_penalty=REPETITION_PENALTY,",
        "",
        ("tests/evaluation/test_perplexity.py::test_continuation_is_greedy_and_repeatable",),
        "the repetition penalty of the protocol is not used",
    ),
    Mutant(
        "effcompress/evaluation/agreement.py",
        "other_TV, first_TV, reduction",
        "first_TV, other_TV, reduction",
        (
            "tests/evaluation/test_agreement.py::test_agrees_with_the_reference[False-1]",
            "tests/evaluation/test_agreement.py::test_agrees_with_the_reference[True-3]",
        ),
        "the divergence is that of the result to the source model",
    ),
    Mutant(
        "effcompress/evaluation/agreement.py",
        "_log_probabilities(model.eval(), ids_BT, positions_BT)[counted]",
        "_log_probabilities(model.eval(), ids_BT, positions_BT)",
        ("tests/evaluation/test_agreement.py::test_agrees_with_the_reference[True-3]",),
        "predictions that do not count are compared",
    ),
    Mutant(
        "effcompress/runner/resources.py",
        "math.prod(batch) * queries * key.shape[-2]",
        "2 * math.prod(batch) * queries * key.shape[-2]",
        (
            "tests/runner/test_operations.py::"
            "test_attention_counts_the_half_that_a_causal_mask_leaves",
        ),
        "pairs that a causal mask leaves out are counted",
    ),
    Mutant(
        "effcompress/runner/resources.py",
        "own, state.operations = state.operations, 0.0",
        "own = state.operations",
        ("tests/runner/test_operations.py::test_a_refit_records_passes_moments_and_solves",),
        "a refit counts its calibration once more",
    ),
    Mutant(
        "effcompress/runner/recovery.py",
        "(spec := state.recipe.teacher) is not None",
        "(spec := None) is not None",
        ("tests/runner/test_recover.py::test_a_teacher_while_layers_shrink",),
        "nothing is distilled",
    ),
    Mutant(
        "effcompress/evaluation/perplexity.py",
        "yield ids_BT, torch.zeros_like(counted_BT), positions_BT",
        "yield ids_BT, counted_BT, positions_BT",
        ("tests/distributed/test_shards_recover.py::test_recovery_and_tasks",),
        "a last batch counts once for every process that waits for it",
    ),
    Mutant(
        "effcompress/evaluation/perplexity.py",
        "loss = total / tokens",
        "loss = total / ids_NT.numel()",
        ("tests/evaluation/test_perplexity.py::test_agrees_with_the_reference[5-1]",),
        "the loss is divided by all tokens, not by the predicted ones",
    ),
    Mutant(
        "effcompress/evaluation/perplexity.py",
        "counted = counted_BT[:, 1:].flatten()",
        "counted = counted_BT[:, :-1].flatten()",
        ("tests/data/test_prompts.py::test_perplexity_counts_only_them",),
        "the mask of prompts is one token late",
    ),
    Mutant(
        "effcompress/evaluation/perplexity.py",
        ("training = module.training\n    module.eval()"),
        "training = module.training",
        (("tests/evaluation/test_perplexity.py::test_dropout_takes_no_part_and_training_goes_on"),),
        "evaluation runs with dropout",
    ),
    Mutant(
        "effcompress/evaluation/speed.py",
        ("if turn:\n                found"),
        ("if True:\n                found"),
        (
            (
                "tests/evaluation/test_speed.py::test_everybody_in_every_round_and_the_first_do"
                "es_not_count"
            ),
        ),
        "the warm-up round counts",
    ),
    Mutant(
        "effcompress/evaluation/speed.py",
        "getattr(b, phase) / getattr(a, phase)",
        "getattr(a, phase) / getattr(b, phase)",
        ("tests/evaluation/test_speed.py::test_rates_and_ratios_by_hand",),
        "faster is shown as slower",
    ),
    Mutant(
        "effcompress/evaluation/speed.py",
        "tokens / getattr(one, phase)",
        "tokens * getattr(one, phase)",
        ("tests/evaluation/test_speed.py::test_rates_and_ratios_by_hand",),
        "tokens times seconds as a rate",
    ),
    Mutant(
        "effcompress/export/forms.py",
        "tensor = ((tensor.double() + offset) * factor - offset).to(tensor.dtype)",
        "tensor = (tensor.double() * factor).to(tensor.dtype)",
        ("tests/export/test_forms.py::test_every_folder_is_the_same_model_again[uniform]",),
        "Gemma's gains are scaled without their offset",
    ),
    Mutant(
        "effcompress/export/forms.py",
        "return norm.length(now.widths) / norm.length(then.widths)",
        "return 1.0",
        ("tests/export/test_forms.py::test_every_folder_is_the_same_model_again[padded]",),
        "padded norms average over zeros",
    ),
    Mutant(
        "effcompress/export/forms.py",
        "found[name] = (epsilon / value) ** 0.5",
        "found[name] = epsilon / value",
        ("tests/export/test_forms.py::test_every_folder_is_the_same_model_again[uniform]",),
        "the factor of fed layers lacks its root",
    ),
    Mutant(
        "effcompress/export/forms.py",
        ("told = {norm.path: norm.epsilon for norm in pruned.norms() if norm.epsilon != plain}"),
        "told = {}",
        ("tests/export/test_forms.py::test_every_folder_is_the_same_model_again[exact]",),
        "epsilons of pruned norms are not stored",
    ),
    Mutant(
        "effcompress/export/forms.py",
        "found[family.final_norm] = found.get(family.final_norm, 1.0) / ratio",
        "pass",
        ("tests/export/test_forms.py::test_every_folder_is_the_same_model_again[uniform]",),
        "Gemma's tied output is scaled twice",
    ),
    Mutant(
        "effcompress/fault.py",
        "if _seen[name] == int(number):",
        "if _seen[name] >= 1:",
        ("tests/runner/test_failures.py::test_the_system_cannot_go_on_and_the_run_can",),
        "faults come at once, not at their turn",
    ),
    Mutant(
        "effcompress/groups/axes.py",
        ("* segment.positions_per_unit\n        yield Side"),
        ("\n        yield Side"),
        (("tests/groups/test_find.py::test_units_cover_every_position_once[gqa_tied-attention]"),),
        "a head owns one position of its projection",
    ),
    Mutant(
        "effcompress/types.py",
        'return value != when.startswith("!")',
        "return value",
        ("tests/groups/test_axes.py::test_configuration_and_tensors_give_the_same_map",),
        "parameters that exist without a flag are not found",
    ),
    Mutant(
        "effcompress/groups/axes.py",
        "if declared[name] != set(range(len(shape))):",
        "if False:",
        ("tests/groups/test_axes.py::test_a_missing_axis_is_an_error",),
        "a dimension without an axis is accepted",
    ),
    Mutant(
        "effcompress/groups/find.py",
        "if s.name in found:",
        "if False:",
        ("tests/groups/test_find.py::test_two_spaces_on_one_axis_are_an_error",),
        "two spaces may claim one axis",
    ),
    Mutant(
        "effcompress/measure/blockwise.py",
        "if layer is not layers[-1] and not block.handed_on:",
        "if False:",
        (("tests/measure/test_blockwise.py::test_blocks_read_and_make_what_they_do_in_the_model"),),
        "every block reads what the first one reads",
    ),
    Mutant(
        "effcompress/measure/grams.py",
        "add_gram(self.values[owner], x_TI.float(), 1.0 / x_TI.shape[0])",
        "add_gram(self.values[owner], x_TI.float(), 1.0)",
        ("tests/measure/test_grams.py::test_mean_of_outer_products_and_shared_inputs",),
        "a Gram matrix is a sum over tokens, not a mean",
    ),
    Mutant(
        "effcompress/measure/grams.py",
        "self.weights[owner] *= self.decay",
        "pass",
        ("tests/measure/test_grams.py::test_subsample_takes_other_tokens_every_time",),
        "the weight of the past does not decay with it",
    ),
    Mutant(
        "effcompress/measure/grams.py",
        "return x_TI if stride <= 1 else x_TI[number % stride :: stride][: self.tokens]",
        "return x_TI if stride <= 1 else x_TI[: self.tokens]",
        ("tests/measure/test_grams.py::test_subsample_takes_other_tokens_every_time",),
        "of every pass only the first tokens are taken",
    ),
    Mutant(
        "effcompress/measure/grams.py",
        "self.values[owner].index_fill_(0, index, 0.0).index_fill_(1, index, 0.0)",
        "self.values[owner].index_fill_(0, index, 0.0)",
        ("tests/measure/test_grams.py::test_follows_masks_and_commits[ffn]",),
        "a removed input's column stays in the Gram matrix",
    ),
    Mutant(
        "effcompress/measure/hessian.py",
        "return grad.square()",
        "return grad.abs()",
        ("tests/measure/test_stats.py::test_mean_gradient_and_fisher",),
        "Fisher information without the square",
    ),
    Mutant(
        "effcompress/measure/hooks.py",
        "return self._on and not recomputing()",
        "return self._on",
        ("tests/runner/test_recompute.py::test_the_same_run_bit_for_bit",),
        "recomputed passes count twice",
    ),
    Mutant(
        "effcompress/measure/grams.py",
        "(self._sums[owner] / self._tokens[owner]).float()",
        "self._sums[owner].float()",
        ("tests/measure/test_blockwise.py::test_moments_are_those_of_the_whole_model",),
        "squares are sums over tokens",
    ),
    Mutant(
        "effcompress/measure/statistics.py",
        "variance = torch.as_tensor(self.spread / self.tokens)",
        "variance = torch.as_tensor(self.spread / self.tokens) + mean.square()",
        ("tests/measure/test_statistics.py::test_statistics_of_inputs",),
        "the variance is the second moment",
    ),
    Mutant(
        "effcompress/measure/statistics.py",
        'self._take(f"{kind}.{layer}", after - added, after)',
        'self._take(f"{kind}.{layer}", before, after)',
        ("tests/measure/test_statistics.py::test_influence_of_layers_and_blocks[llama]",),
        "a feed-forward block is charged with its attention",
    ),
    Mutant(
        "effcompress/measure/stats.py",
        'corrected = 1.0 - self._beta2[id(p)] ** float(state["step"])',
        "corrected = 1.0",
        (("tests/measure/test_stats.py::test_the_optimizers_hessian_is_the_mean_of_what_it_saw"),),
        "Adam's bias correction is left out of the Hessian",
    ),
    Mutant(
        "effcompress/measure/stats.py",
        'group["betas"][1]',
        'group["betas"][0]',
        (("tests/measure/test_stats.py::test_the_optimizers_hessian_is_the_mean_of_what_it_saw"),),
        "the wrong beta corrects the second moment",
    ),
    Mutant(
        "effcompress/measure/stats.py",
        "into[name].add_(value, alpha=1 / count)",
        "into[name].add_(value)",
        ("tests/measure/test_stats.py::test_mean_gradient_and_fisher",),
        "the first calibration sequence counts least",
    ),
    Mutant(
        "effcompress/model/cache.py",
        "_put(work, target)",
        "_remove(work)",
        ("tests/model/test_cache.py::test_a_folder_replaces_a_folder",),
        "what was made is thrown away",
    ),
    Mutant(
        "effcompress/model/cache.py",
        "freed = _remove(work)",
        "freed = 0",
        ("tests/model/test_cache.py::test_nothing_stays_after_a_failure[RuntimeError]",),
        "half a file stays after a failure",
    ),
    Mutant(
        "effcompress/model/exact.py",
        "if fields.get(name) != width:",
        "if fields.get(name) == width:",
        ("tests/model/test_modeling_pruned.py::test_widths_are_recorded_for_other_readers",),
        "only widths that are alike are written down per layer",
    ),
    Mutant(
        "effcompress/model/gguf/write.py",
        "halves = entry.values().unflatten(0, (heads, 2, -1))",
        "halves = entry.values().unflatten(0, (heads, -1, 2))",
        ("tests/model/test_gguf.py::test_uniform[tied]",),
        "rope's halves are taken for pairs",
    ),
    Mutant(
        "effcompress/model/gguf/write.py",
        '("self_attn.k_proj", (kv, hidden), w.kv_heads)',
        '("self_attn.k_proj", (kv, hidden), w.heads)',
        ("tests/model/test_gguf.py::test_uniform[tied]",),
        "keys are turned in as many heads as queries",
    ),
    Mutant(
        "effcompress/model/gguf/write.py",
        "found.append(1 / ((1 - smooth) / factor + smooth))",
        "found.append((1 - smooth) / factor + smooth)",
        ("tests/model/test_gguf.py::test_uniform",),
        "llama3's rope factors are inverted",
    ),
    Mutant(
        "effcompress/model/gguf/write.py",
        "writer.add_layer_norm_rms_eps(epsilon)",
        "writer.add_layer_norm_rms_eps(1e-5)",
        ("tests/model/test_gguf.py::test_uniform[tied]",),
        "the file has the source's epsilon",
    ),
    Mutant(
        "effcompress/model/gguf/geometry.py",
        'return min(_positions(stated), int(stated["sliding_window"]))',
        "return _positions(stated)",
        ("tests/model/test_gguf.py::test_context_ends_with_the_sliding_window[32-32]",),
        "the context is longer than the sliding window",
    ),
    Mutant(
        "effcompress/model/gguf/sources.py",
        "int(width * known.rotated)",
        "int(width)",
        ("tests/model/test_gguf_sources.py::test_what_is_read_is_the_same_model[nemotron]",),
        "rope that turns a part of every head is refused",
    ),
    Mutant(
        "effcompress/model/gguf/sources.py",
        "return header.get(key, taken) != taken",
        "return False",
        ("tests/model/test_gguf_sources.py::test_check_finds_it_without_torch",),
        "a file that states what transformers do not read is taken",
    ),
    Mutant(
        "effcompress/model/integrity.py",
        'if deep and sha256_of(path) != fact["sha256"]:',
        "if False:",
        ("tests/model/test_fetch.py::test_a_damaged_cache_is_named_and_made_again",),
        "a damaged file in the cache is taken",
    ),
    Mutant(
        "effcompress/model/lineage.py",
        "return Depth(tuple(layers), frozenset(absent))",
        "return Depth(tuple(layers))",
        ("tests/model/test_lineage.py",),
        "a pruned folder's missing blocks are looked for",
    ),
    Mutant(
        "effcompress/model/load.py",
        'said.update(f"{name} {p.dtype} {tuple(p.shape)} ".encode())',
        'said.update(b" ")',
        ("tests/model/test_fingerprint.py::test_names_shapes_and_types_are_part_of_it",),
        "names and shapes are left out of a fingerprint",
    ),
    Mutant(
        "effcompress/model/load.py",
        'if name.endswith(".bias") and not value.any():',
        'if name.endswith(".bias"):',
        ("tests/model/test_fingerprint.py::test_a_hash_says_which_weights",),
        "biases are left out of a fingerprint",
    ),
    Mutant(
        "effcompress/model/load.py",
        'said.update(f"{name} {p.dtype} {tuple(p.shape)} ".encode())',
        'said.update(f"{name} {tuple(p.shape)} ".encode())',
        ("tests/model/test_fingerprint.py::test_names_shapes_and_types_are_part_of_it",),
        "types are left out of a fingerprint",
    ),
    Mutant(
        "effcompress/model/scratch.py",
        "if not (used.flatten(1).any(1).all() and used.any(0).all()):",
        "if False:",
        ("tests/runner/test_scratch.py::test_a_padded_folder_that_lost_its_record_is_refused",),
        "a padded folder is trained from scratch as it is",
    ),
    Mutant(
        "effcompress/network/pruned_model.py",
        "return self.parent.count(self.ledger.widths())",
        "return self.axes.count()",
        ("tests/removal/test_modules.py::test_masked_units_do_not_count",),
        "masked units count as parameters",
    ),
    Mutant(
        "effcompress/recipe/cross_checks.py",
        "yield Row(size % micro,",
        "yield Row(micro > size,",
        ("tests/runner/test_recover.py::test_contradictions",),
        "micro-batches that do not divide the batch are accepted",
    ),
    Mutant(
        "effcompress/recipe/cross_checks.py",
        "rate.warmup + rate.decay > 1",
        "rate.warmup + rate.decay > 2",
        ("tests/runner/test_recover.py::test_contradictions",),
        "warm-up and decay may take more than all tokens",
    ),
    Mutant(
        "effcompress/recipe/cross_checks.py",
        "yield Row(untrained, source,",
        "yield Row(False, source,",
        ("tests/cli/test_broken_recipes.py::test_broken_recipe",),
        "a criterion measures on a training that does not exist",
    ),
    Mutant(
        "effcompress/recipe/cross_checks.py",
        'for key in ("search", "allocation"):',
        'for key in ("search",):',
        ("tests/distributed/test_shards.py::test_what_needs_the_whole_model_is_refused",),
        "a choice of widths on shards is accepted",
    ),
    Mutant(
        "effcompress/recipe/load.py",
        "base = merge(base, _included(read_file(file)[1], file, (*chain, file), files))",
        "base = merge(_included(read_file(file)[1], file, (*chain, file), files), base)",
        (
            (
                "tests/recipe/test_load.py::test_later_includes_win_and_another_plugin_replaces"
                "_the_whole"
            ),
        ),
        "of several included files the first wins",
    ),
    Mutant(
        "effcompress/recipe/quantities.py",
        '"M": 10**6',
        '"M": 2**20',
        ("tests/recipe/test_quantities.py::test_counts[469M-469000000]",),
        "469M means mebi",
    ),
    Mutant(
        "effcompress/recipe/quantities.py",
        'return float(Decimal(written.removesuffix("%")) / 100)',
        'return float(Decimal(written.removesuffix("%")))',
        ("tests/recipe/test_quantities.py::test_fractions",),
        "85% is 85",
    ),
    Mutant(
        "effcompress/recipe/resolved.py",
        "return str(value) if isinstance(value, Path) else value",
        "return value.name if isinstance(value, Path) else value",
        ("tests/recipe/test_resolved.py::test_resolved_loads_back_equal_from_another_folder",),
        "paths in the resolved recipe lose their folders",
    ),
    Mutant(
        "effcompress/recipe/source_map.py",
        "return isinstance(old, str) and isinstance(new, str) and old != new",
        "return False",
        (
            (
                "tests/recipe/test_load.py::test_later_includes_win_and_another_plugin_replaces"
                "_the_whole"
            ),
        ),
        "a plugin inherits the knobs of another one",
    ),
    Mutant(
        "effcompress/record/events.py",
        "return self.tokens_equal and self.cache_equal",
        "return self.tokens_equal or self.cache_equal",
        ("tests/report/test_report.py::test_a_proof_is_whole_or_none",),
        "half a proof is shown as one",
    ),
    Mutant(
        "effcompress/record/events.py",
        "if where is not None and not math.isfinite(value):",
        "if False:",
        ("tests/record/test_log.py::test_a_number_that_is_not_finite_is_refused_by_name[nan]",),
        "NaN goes into the record",
    ),
    Mutant(
        "effcompress/record/heartbeat.py",
        'return float("inf") if self._dumped else self._last + self._silence',
        "return self._last + self._silence",
        ("tests/record/test_log.py::test_watchdog_dumps_once_in_a_silence",),
        "the watchdog repeats itself without an end",
    ),
    Mutant(
        "effcompress/record/log.py",
        'file.truncate(content.rfind(b"\\n") + 1)',
        "pass",
        ("tests/record/test_log.py::test_a_half_written_line_is_dropped_when_the_run_goes_on",),
        "half a line of a killed run stays in the record",
    ),
    Mutant(
        "effcompress/record/log.py",
        "file.truncate(state.get(name, 0))",
        "pass",
        ("tests/record/test_log.py::test_rewind_gives_the_record_of_an_uninterrupted_run",),
        "events behind the checkpoint stand twice after resuming",
    ),
    Mutant(
        "effcompress/record/log.py",
        "os.fsync(file.fileno())",
        "pass",
        ("tests/record/test_log.py::test_a_checkpoints_position_is_on_the_disk",),
        "a checkpoint may point past the end of the record",
    ),
    Mutant(
        "effcompress/record/readable.py",
        'f"{value / size:.4g}" if unit',
        'f"{value / size:.1g}" if unit',
        ("tests/record/test_readable.py::test_counts[1500-1.5k]",),
        "sizes are rounded to one digit",
    ),
    Mutant(
        "effcompress/record/readable.py",
        "divmod(round(seconds), 60)",
        "divmod(int(seconds), 59)",
        ("tests/record/test_readable.py",),
        "minutes of 59 seconds",
    ),
    Mutant(
        "effcompress/record/readable.py",
        "if abs(value) >= s * 0.9995), (1.0",
        "if abs(value) >= s), (1.0",
        ("tests/record/test_readable.py::test_counts_with_one_decimal[999960-1M]",),
        "999,960 is called 1000k",
    ),
    Mutant(
        "effcompress/record/readable.py",
        'f" {whole % 60} s" if whole % 60 else ""',
        'f" {whole // 60} s" if whole % 60 else ""',
        ("tests/record/test_readable.py::test_durations",),
        "seconds of a duration are its minutes",
    ),
    Mutant(
        "effcompress/record/status.py",
        "steps = max(0, last.step - checkpoint.step)",
        "steps = last.step",
        (
            (
                "tests/record/test_tail.py::test_what_a_crash_would_lose_is_what_was_done_since"
                "_the_newest_checkpoint"
            ),
        ),
        "the status says that all steps would be lost",
    ),
    Mutant(
        "effcompress/record/status.py",
        'for path in sorted((folder / "checkpoints").glob("step-*"), reverse=True):',
        'for path in sorted((folder / "checkpoints").glob("step-*")):',
        (
            (
                "tests/record/test_tail.py::test_what_a_crash_would_lose_is_what_was_done_since"
                "_the_newest_checkpoint"
            ),
        ),
        "the status names the oldest checkpoint",
    ),
    Mutant(
        "effcompress/record/status_file.py",
        "return processes.born(self.pid) == self.born",
        "return processes.born(self.pid) is not None",
        (("tests/record/test_status_file.py::test_another_process_with_the_same_pid_is_another"),),
        "a reused process number counts as the run",
    ),
    Mutant(
        "effcompress/record/status_file.py",
        "MISSED = 6",
        "MISSED = 600",
        (
            (
                "tests/record/test_status_file.py::test_of_another_machine_only_the_heartbeat_i"
                "s_known"
            ),
        ),
        "a dead run on another host counts as alive for hours",
    ),
    Mutant(
        "effcompress/record/status_file.py",
        "work.replace(self._folder / NAME)",
        "(self._folder / NAME).write_text(work.read_text())",
        (
            (
                "tests/record/test_status_file.py::test_a_phase_is_there_at_once_and_the_rest_w"
                "ith_the_heartbeat"
            ),
        ),
        "the status file may be read half-written",
        survives=(
            "no test can see the moment between two writes of so short a file; the file's "
            "content is the same"
        ),
    ),
    Mutant(
        "effcompress/record/tail.py",
        "rest = block[len(whole) :]",
        'rest = b"\\n"',
        ("tests/record/test_tail.py::test_no_line_is_lost_where_two_blocks_meet",),
        "lines on the border of two blocks are lost",
    ),
    Mutant(
        "effcompress/registry.py",
        "if old is not None and old.where != where:",
        "if False:",
        ("tests/test_registry.py::test_a_clash_names_both_places",),
        "a plugin replaces another of the same name in silence",
    ),
    Mutant(
        "effcompress/registry.py",
        "if alone and len(needs) > 1:",
        "if False:",
        ("tests/test_registry.py::test_gradients_of_masks_stand_alone",),
        "mask_grad beside weights is accepted",
    ),
    Mutant(
        "effcompress/removal/commit.py",
        "if not bool(dead.any()):",
        "if not bool(dead.all()):",
        ("tests/removal/test_cut_while_training.py::test_cuts_compose",),
        "a set that is dead in part is never cut out",
    ),
    Mutant(
        "effcompress/removal/commit.py",
        "alive[m.index_GB[dead].flatten()] = False",
        "alive[m.index_GB[~dead].flatten()] = False",
        (
            (
                "tests/removal/test_cut_while_training.py::test_state_follows_the_survivors_bit"
                "_for_bit"
            ),
        ),
        "the living units are cut out, not the dead ones",
    ),
    Mutant(
        "effcompress/removal/commit.py",
        "optimizer.state[p][key] = select(value, keep)",
        "optimizer.state[p][key] = select(value, keep) * 0",
        (
            (
                "tests/removal/test_cut_while_training.py::test_state_follows_the_survivors_bit"
                "_for_bit"
            ),
        ),
        "the optimizer's moments are forgotten when tensors are shortened",
    ),
    Mutant(
        "effcompress/removal/compensate.py",
        "inputs.silence(owner, read.gone)",
        "pass",
        (("tests/contract/test_compensate.py::test_what_was_read_by_inputs_that_go_is_forgotten"),),
        "what removed inputs read goes on counting in the Gram matrix",
    ),
    Mutant(
        "effcompress/removal/compensate.py",
        "bias.add_(part)",
        "bias.copy_(part)",
        ("tests/contract/test_compensate.py::test_a_repair_adds_to_the_bias_that_is_there",),
        "a repair forgets the bias that was there",
    ),
    Mutant(
        "effcompress/removal/ledger.py",
        "self.original[name] = self.original[name][keep]",
        "self.original[name] = torch.arange(len(keep))",
        ("tests/removal/test_ledger.py::test_original_numbers_survive_two_rounds",),
        "original numbers of units are lost at a commit",
    ),
    Mutant(
        "effcompress/removal/ledger.py",
        "there = (held_G.index_select(0, at) == wanted) & alive_G.index_select(0, at)",
        "there = held_G.index_select(0, at) == wanted",
        ("tests/removal/test_ledger.py::test_a_masked_unit_is_gone_before_any_commit",),
        "a unit may be removed twice",
    ),
    Mutant(
        "effcompress/removal/ledger.py",
        "torch.full_like(score_G, torch.inf)",
        "torch.full_like(score_G, 0.0)",
        ("tests/removal/test_ledger.py::test_scores_of_the_dead_are_infinite",),
        "removed units have the lowest saliency of all",
    ),
    Mutant(
        "effcompress/removal/mask.py",
        "for tensor in (p, *(moment for _, moment in moments(optimizer, p))):",
        "for tensor in (p,):",
        (
            (
                "tests/removal/test_cut_while_training.py::test_masked_units_stay_zero_and_trai"
                "ning_is_the_same_as_after_a_commit"
            ),
        ),
        "moments of masked weights stay, so the next step brings the weights back",
    ),
    Mutant(
        "effcompress/removal/mask.py",
        "widths[name] -= len(units)",
        "widths[name] -= 1",
        ("tests/contract/test_mask_equals_removal.py::test_masking_equals_removing",),
        "a norm is narrowed by one channel whatever was removed",
    ),
    Mutant(
        "effcompress/removal/mask.py",
        "rows = {name: t.index_select(dim, alive_A) for name, (t, dim) in held.items()}",
        "rows = {name: t for name, (t, dim) in held.items()}",
        ("tests/contract/test_mask_equals_removal.py::test_masking_equals_removing",),
        "a router chooses among dead experts",
    ),
    Mutant(
        "effcompress/removal/modules.py",
        "part.layer_idx = j",
        "part.layer_idx = i",
        ("tests/runner/test_depth.py::test_layers_and_blocks_go_and_the_record_says_so",),
        "layers keep the parent's number and write into the wrong cache",
    ),
    Mutant(
        "effcompress/removal/modules.py",
        "child.out_features, child.in_features = weight.shape",
        "child.in_features, child.out_features = weight.shape",
        ("tests/removal/test_modules.py::test_sizes_of_modules_are_those_of_their_weights",),
        "sizes of linear layers are told the wrong way round",
    ),
    Mutant(
        "effcompress/removal/norms.py",
        "gain = norm.effective() * (norm.physical / before) ** 0.5",
        "gain = norm.effective() * (norm.physical / before)",
        ("tests/removal/test_modules.py::test_masks_one_after_the_other_are_one_mask",),
        "the gain is scaled by the ratio, not by its root",
    ),
    Mutant(
        "effcompress/removal/norms.py",
        "norm.epsilon = epsilon * after / norm.physical",
        "norm.epsilon = epsilon",
        ("tests/contract/test_mask_equals_removal.py::test_masking_equals_removing",),
        "epsilon keeps the value of the wider norm",
    ),
    Mutant(
        "effcompress/removal/norms.py",
        "out.to(weight.dtype) * (weight + self.offset)",
        "out.to(weight.dtype) * weight",
        ("tests/contract/test_more_families.py::test_masked_and_removed_are_the_same",),
        "a LayerNorm that stores its gain less one multiplies by what is stored while it is masked",
    ),
    Mutant(
        "effcompress/removal/modules.py",
        "in family.outside(config, everywhere).items()",
        "in {}.items()",
        ("tests/removal/test_modules.py::test_norms_without_gain_know_their_length",),
        "modules outside the layers keep the sizes of the parent",
    ),
    Mutant(
        "effcompress/measure/statistics.py",
        "addition(part, path, args, out).detach().clone()",
        "addition(part, path, args, out).detach()",
        ("tests/measure/test_statistics.py::test_influence_of_layers_and_blocks",),
        "what a block adds is read after the class has added the other block's output to it",
    ),
    Mutant(
        "effcompress/removal/norms.py",
        "centred = (wide - mean) * live",
        "centred = wide - mean",
        ("tests/contract/test_mask_equals_removal.py::test_masking_equals_removing",),
        "dead channels take part in the variance of a LayerNorm",
    ),
    Mutant(
        "effcompress/removal/norms.py",
        "return self.gain.detach().double() + self.offset",
        "return self.gain.detach().double()",
        ("tests/contract/test_mask_equals_removal.py::test_masking_equals_removing",),
        "Gemma's gain is read without its offset",
    ),
    Mutant(
        "effcompress/removal/optimizer.py",
        "if p.requires_grad and id(p) not in held:",
        "if False:",
        (
            (
                "tests/removal/test_cut_while_training.py::test_selftest_catches_broken_ties_an"
                "d_foreign_optimizers"
            ),
        ),
        "a parameter that the optimizer lost is never trained again",
    ),
    Mutant(
        "effcompress/removal/selftest.py",
        "TOLERANCE = 1e-4",
        "TOLERANCE = 1e-1",
        ("tests/removal/test_cut_while_training.py::test_selftest_catches_a_wrong_cut",),
        "the commit's self-test lets a thousandfold difference pass",
    ),
    Mutant(
        "effcompress/removal/selftest.py",
        "if _ties(module) != ties:",
        "if False:",
        (
            (
                "tests/removal/test_cut_while_training.py::test_selftest_catches_broken_ties_an"
                "d_foreign_optimizers"
            ),
        ),
        "tied weights may come apart unnoticed",
    ),
    Mutant(
        "effcompress/report/card.py",
        "change = readable.percent(after / before - 1, sign=True)",
        "change = readable.percent(before / after - 1, sign=True)",
        (("tests/report/test_report.py::test_the_change_of_the_size_is_a_part_of_what_there_was"),),
        "the change of the size has the wrong base",
    ),
    Mutant(
        "effcompress/report/card.py",
        'return None if name in ("null", "~") or keys.get("random") == "true" else name',
        'return None if name in ("null", "~") else name',
        ("tests/report/test_report.py::test_the_hub_id_is_found",),
        "a random model names the hub model as its base",
    ),
    Mutant(
        "effcompress/report/comparison/facts.py",
        "end and end.seconds + (before.seconds if before and before.known else 0.0)",
        "end and end.seconds",
        (
            (
                "tests/report/test_comparison_facts.py::test_a_dense_evaluation_from_the_cache_"
                "is_charged_for"
            ),
        ),
        "a cached evaluation is left out of the times",
    ),
    Mutant(
        "effcompress/report/comparison/facts.py",
        "return sum(event.seconds or 0.0 for event in record.costs), max(",
        "return max(event.seconds or 0.0 for event in record.costs), max(",
        ("tests/report/test_comparison_facts.py::test_cost_is_that_of_all_events_of_pruning",),
        "only the longest cut counts",
    ),
    Mutant(
        "effcompress/report/comparison/flags.py",
        "SAME_DENSE = 1e-3",
        "SAME_DENSE = 1e3",
        (
            (
                "tests/report/test_comparison_flags.py::test_every_difference_is_flagged_and_on"
                "ly_where_it_is"
            ),
        ),
        "dense models that differ are not flagged",
    ),
    Mutant(
        "effcompress/report/comparison/flags.py",
        "dict.fromkeys((label, of(facts)) for label, facts in peers)",
        "[(label, of(facts)) for label, facts in peers]",
        (
            (
                "tests/report/test_comparison_flags.py::test_each_method_has_one_vote_however_m"
                "any_runs_it_has"
            ),
        ),
        "a method with many seeds outvotes the others",
    ),
    Mutant(
        "effcompress/report/comparison/flags.py",
        'Check("held-out", "its held-out tokens", _heldout, _other_heldout),',
        "",
        (
            (
                "tests/report/test_comparison_flags.py::test_every_difference_is_flagged_and_on"
                "ly_where_it_is"
            ),
        ),
        "other held-out text is not flagged",
    ),
    Mutant(
        "effcompress/report/comparison/flags.py",
        "and abs(value / had - 1) > SAME_DENSE",
        "and value / had - 1 > SAME_DENSE",
        (
            (
                "tests/report/test_comparison_flags.py::test_a_better_dense_model_is_flagged_as"
                "_well_as_a_worse_one"
            ),
        ),
        "the dense flag of a comparison looks only upwards",
    ),
    Mutant(
        "effcompress/report/comparison/rows.py",
        "ranked = [None if row.unfair else row.values.get(QUALITY) for row in here]",
        "ranked = [row.values.get(QUALITY) for row in here]",
        ("tests/report/test_comparison.py::test_rows_are_sorted_and_ties_are_marked",),
        "rows that cannot be compared are ranked",
    ),
    Mutant(
        "effcompress/report/comparison/spread.py",
        "math.sqrt(self.number)",
        "self.number",
        ("tests/report/test_comparison.py::test_mean_and_sample_deviation",),
        "the standard error divides by n",
    ),
    Mutant(
        "effcompress/report/comparison/spread.py",
        "(side.number - 1)",
        "side.number",
        ("tests/report/test_comparison.py::test_welch_is_that_of_scipy[one0-other0]",),
        "Welch's degrees of freedom take n for n - 1",
    ),
    Mutant(
        "effcompress/report/comparison/spread.py",
        "statistics.stdev(v / scale for v in known)",
        "statistics.pstdev([v / scale for v in known])",
        ("tests/report/test_comparison.py::test_mean_and_sample_deviation",),
        "the deviation of a sample divides by n",
    ),
    Mutant(
        "effcompress/report/comparison/spread.py",
        "math.exp(statistics.fmean(math.log(v) for v in values))",
        "statistics.fmean(values)",
        ("tests/report/test_comparison.py::test_domains_count_alike",),
        "domains have weights by their scale",
    ),
    Mutant(
        "effcompress/report/comparison/spread.py",
        "(len(order) - rank) * p_values[k]",
        "p_values[k]",
        (
            "tests/report/test_comparison.py::test_several_methods_are_harder_to_tell_apart_than_one",
        ),
        "p values are not adjusted for the number of methods",
    ),
    Mutant(
        "effcompress/report/comparison/spread.py",
        "best = min(ranked, key=lambda v: v.mean)",
        "best = max(ranked, key=lambda v: v.mean)",
        ("tests/report/test_comparison.py::test_marks",),
        "the worst is called best",
    ),
    Mutant(
        "effcompress/report/gather.py",
        "return (self.run.source_params or self.run.params) if self.run else None",
        "return self.run.params if self.run else None",
        (("tests/runner/test_baselines.py::test_flap_ranks_everything_together_and_mends_biases"),),
        "added biases count as removed parameters",
    ),
    Mutant(
        "effcompress/report/gather.py",
        "commit_difference=max((d for d in moved if d is not None), default=None)",
        "commit_difference=min((d for d in moved if d is not None), default=None)",
        ("tests/report/test_report.py::test_a_proof_is_whole_or_none",),
        "the smallest difference of a commit is shown",
    ),
    Mutant(
        "effcompress/report/gather.py",
        "left = {name: width - gone[name] for name",
        "left = {name: width for name",
        ("tests/report/test_report.py::test_widths_of_an_unfinished_run_come_from_its_plans",),
        "widths of an unfinished run are those of its beginning",
    ),
    Mutant(
        "effcompress/record/readable.py",
        "f\"{fraction * 100:{'+' if sign else ''}.{digits}f}\"",
        "f\"{fraction * 10:{'+' if sign else ''}.{digits}f}\"",
        ("tests/report/test_numbers.py::test_percentages",),
        "per cent are tenths",
    ),
    Mutant(
        "effcompress/report/words.py",
        "readable.percent(made.zeroed / max(1, made.weights))",
        "readable.percent(made.zeroed / max(1, params))",
        ("tests/report/test_report.py::test_zeros_are_not_sold_as_fewer_parameters",),
        "zeros of linear layers are related to all parameters",
    ),
    Mutant(
        "effcompress/report/speed.py",
        "steps = [s for s in record.steps[1:] if s.flops]",
        "steps = [s for s in record.steps if s.flops]",
        ("tests/report/test_speed.py::test_by_hand",),
        "the first step, which warms up, counts",
    ),
    Mutant(
        "effcompress/report/speed.py",
        "+ record.cutting_seconds",
        "",
        ("tests/report/test_speed.py::test_by_hand",),
        "cuts take no time",
    ),
    Mutant(
        "effcompress/report/words.py",
        "change = readable.percent(after / before - 1, sign=True)",
        "change = readable.percent(before / after - 1, sign=True)",
        (
            (
                "tests/report/test_report.py::test_the_card_has_front_matter_and_everything_peo"
                "ple_ask_for"
            ),
        ),
        "a worse perplexity is shown as a better one",
    ),
    Mutant(
        "effcompress/runner/evaluation.py",
        '"model": model_hash,',
        '"model": "",',
        (
            (
                "tests/runner/test_dense_cache.py::test_what_an_evaluation_depends_on_is_measur"
                "ed_anew"
            ),
        ),
        "another model's evaluation is taken",
    ),
    Mutant(
        "effcompress/runner/evaluation.py",
        '"tokens": tokens,',
        '"tokens": "",',
        (
            (
                "tests/runner/test_dense_cache.py::test_another_text_and_another_model_are_meas"
                "ured_anew"
            ),
        ),
        "an evaluation on other text is taken",
    ),
    Mutant(
        "effcompress/runner/evaluation.py",
        '"config": dict(config),',
        "",
        (
            (
                "tests/runner/test_dense_cache.py::test_another_text_and_another_model_are_meas"
                "ured_anew"
            ),
        ),
        "an evaluation under another rotary base is taken",
    ),
    Mutant(
        "effcompress/runner/evaluation.py",
        ', "code": _code()}',
        "}",
        (
            (
                "tests/runner/test_dense_cache.py::test_everything_that_an_evaluation_depends_o"
                "n_is_in_its_key"
            ),
        ),
        "an evaluation by other code is taken",
    ),
    Mutant(
        "effcompress/runner/evaluation.py",
        "return replace(before, known=True)",
        "return before",
        ("tests/runner/test_dense_cache.py::test_the_dense_model_is_measured_once",),
        "a cached evaluation is not marked as one",
    ),
    Mutant(
        "effcompress/runner/evaluation.py",
        "of = module, ids_NT, spec.batch_size, trained_NT, world, positions_NT",
        "of = module, ids_NT, spec.batch_size, None, world, positions_NT",
        ("tests/runner/test_evaluation.py::test_prompts_do_not_count",),
        "prompts count into the perplexity",
    ),
    Mutant(
        "effcompress/runner/run.py",
        'return "Lower data.sequence_length, or free some memory; see effcompress plan."',
        'return ""',
        ("tests/runner/test_failures.py::test_what_to_do_about_memory",),
        "no advice where one row does not fit",
    ),
    Mutant(
        "effcompress/runner/run.py",
        "micro_batch_size: {rows // 2} or less",
        "micro_batch_size: {rows * 2} or less",
        ("tests/runner/test_failures.py::test_what_to_do_about_memory",),
        "the advice is to take more memory",
    ),
    Mutant(
        "effcompress/runner/folder.py",
        "if begun(folder) and not resume:",
        "if False:",
        ("tests/runner/test_run.py::test_a_folder_with_a_run_is_never_overwritten",),
        "a run is overwritten",
    ),
    Mutant(
        "effcompress/runner/folder.py",
        "if was != now and not (",
        "if key in old and key in new and was != now and not (",
        ("tests/runner/test_record.py::test_a_key_that_came_or_went_is_another_recipe",),
        "keys that came or went do not count as a change",
    ),
    Mutant(
        "effcompress/runner/folder.py",
        'key.partition(".")[0] != "track" and key not in HOW',
        'key.partition(".")[0] not in ("track", "train") and key not in HOW',
        ("tests/runner/test_run.py::test_a_folder_with_a_run_is_never_overwritten",),
        "a run goes on under another training",
    ),
    Mutant(
        "effcompress/runner/prune.py",
        "if end < state.total_tokens and state.tokens >= end and not goes_there:",
        "if False:",
        ("tests/runner/test_schedules.py::test_stages",),
        "what the schedule left over is not cut when the stage ends",
    ),
    Mutant(
        "effcompress/runner/prune.py",
        "abs(params - target) > TOLERANCE * target",
        "abs(params - target) > 100 * TOLERANCE * target",
        ("tests/runner/test_record.py::test_a_size_far_from_the_target_is_no_success",),
        "a size far from the target counts as reached",
    ),
    Mutant(
        "effcompress/runner/prune.py",
        "state.since_commit += sum(choice.removed.values())",
        "state.since_commit += 1",
        (("tests/runner/test_record.py::test_tensors_are_shortened_as_often_as_the_recipe_says"),),
        "commits come late",
    ),
    Mutant(
        "effcompress/runner/prune.py",
        ("_observe(state, prune, due, found)\n"),
        ("pass\n"),
        (
            (
                "tests/runner/test_interleaved.py::test_every_cut_is_that_of_an_independent_com"
                "putation"
            ),
        ),
        "influence of layers is not remembered",
    ),
    Mutant(
        "effcompress/runner/prune.py",
        "gone.setdefault(s.kind, []).append(1.0 - choice.widths[s.name] / s.size)",
        "gone.setdefault(s.kind, []).append(choice.widths[s.name] / s.size)",
        ("tests/runner/test_record.py::test_numbers_of_a_step_are_those_it_was_made_with",),
        "the record says what is left as what is gone",
    ),
    Mutant(
        "effcompress/runner/prune.py",
        "x.index_fill(-1, gone.to(x.device), 0.0)",
        "x",
        ("tests/runner/test_propagated.py::test_wanda_sp_is_handed_on",),
        "propagation hands on what goes",
    ),
    Mutant(
        "effcompress/runner/recovery.py",
        "layers = tuple(parent.index(i) for i in pruned.depth.layers)",
        "layers = tuple(range(len(pruned.depth.layers)))",
        (("tests/runner/test_recover.py::test_the_teacher_is_told_which_of_its_layers_are_left"),),
        "the teacher's layers are numbered as if none were gone",
    ),
    Mutant(
        "effcompress/runner/source_model.py",
        "torch.set_rng_state(rng)  # a resumed",
        "pass  # a resumed",
        (("tests/runner/test_recover.py::test_the_teacher_is_told_which_of_its_layers_are_left"),),
        "loading the teacher uses up random numbers",
    ),
    Mutant(
        "effcompress/runner/recovery.py",
        "bias.add_(more_O.to(bias.device))",
        "bias.copy_(more_O.to(bias.device))",
        ("tests/plugins/test_refit.py::test_an_intercept_adds_to_the_bias_that_is_there",),
        "the refit forgets the bias that was there",
    ),
    Mutant(
        "effcompress/runner/run.py",
        "[:, :length]",
        "[:, :1]",
        ("tests/runner/test_record.py::test_numbers_of_a_step_are_those_it_was_made_with",),
        "a proof of a single token",
    ),
    Mutant(
        "effcompress/runner/run.py",
        'if saved.values["corpus"] != state.corpus.fingerprint:',
        "if False:",
        ("tests/runner/test_checkpoints.py::test_other_text_is_refused_on_resume",),
        "a run goes on with other text",
    ),
    Mutant(
        "effcompress/runner/run.py",
        "torch.manual_seed(recipe.seed)",
        "pass",
        (
            "tests/runner/test_run.py::test_same_result_twice",
            "tests/runner/test_run.py::test_random_saliency_in_a_loop_follows_the_seed",
        ),
        "a run is not seeded",
    ),
    Mutant(
        "effcompress/runner/run.py",
        "elif state.step % recipe.save.every == 0:",
        "elif state.step % recipe.save.every == 1:",
        ("tests/runner/test_record.py::test_numbers_of_a_step_are_those_it_was_made_with",),
        "checkpoints come at other steps",
    ),
    Mutant(
        "effcompress/stopping.py",
        'error.exit_code = 0 if name == "SIGTERM" else 128 + signal.Signals[name]',
        "error.exit_code = 0",
        ("tests/runner/test_signals.py",),
        "Ctrl-C counts as success for a shell",
    ),
    Mutant(
        "effcompress/runner/start.py",
        "source_params=state.params - model.added_params,",
        "source_params=state.params,",
        (("tests/runner/test_baselines.py::test_flap_ranks_everything_together_and_mends_biases"),),
        "added biases count as parameters of the source",
    ),
    Mutant(
        "effcompress/runner/state.py",
        ('"left_out",\n'),
        "",
        ("tests/runner/test_checkpoints.py::test_a_checkpoint_holds_every_counter",),
        "a resumed run forgets the steps it left out",
    ),
    Mutant(
        "effcompress/runner/state.py",
        ('"groups_cut",\n'),
        "",
        ("tests/runner/test_checkpoints.py::test_a_checkpoint_holds_every_counter",),
        "a resumed run counts its cuts from zero",
    ),
    Mutant(
        "effcompress/runner/state.py",
        '"state": self.selector_state,',
        '"state": None,',
        ("tests/runner/test_interleaved.py::test_resumed_between_two_cuts_it_is_the_same_run",),
        "a resumed run forgets the influence of layers",
    ),
    Mutant(
        "effcompress/runner/state.py",
        "return (3 if self.lora is None else 2) * forward + taught",
        "return 3 * forward + taught",
        ("tests/runner/test_record.py::test_operations_of_recovery",),
        "LoRA's operations are those of full training",
    ),
    Mutant(
        "effcompress/runner/state.py",
        "taught = self._flops_at({}) / 3 if self.objective is not next_token else 0.0",
        "taught = 0.0",
        ("tests/runner/test_record.py::test_operations_of_recovery",),
        "the teacher's forward costs nothing",
    ),
    Mutant(
        "effcompress/runner/state.py",
        'tensors: dict[str, Tensor] = {"rng/cpu": torch.get_rng_state()}',
        'tensors: dict[str, Tensor] = {"rng/cpu": torch.Generator().get_state()}',
        ("tests/runner/test_recover.py::test_it_recovers_and_goes_on_where_it_stopped",),
        "the random numbers of a resumed run are others",
    ),
    Mutant(
        "effcompress/runner/step.py",
        "state.tokens += tokens",
        "state.tokens += batch.ids_BT.shape[0]",
        ("tests/runner/test_record.py::test_numbers_of_a_step_are_those_it_was_made_with",),
        "sequences are counted as tokens",
    ),
    Mutant(
        "effcompress/runner/step.py",
        "spec.learning_rate, state.tokens - start, end - start, tokens)",
        "spec.learning_rate, begun - start, end - start, tokens)",
        ("tests/runner/test_record.py::test_numbers_of_a_step_are_those_it_was_made_with",),
        "the learning rate is one step late",
    ),
    Mutant(
        "effcompress/runner/step.py",
        "if state.left_out <= spec.bad_steps:",
        "if state.left_out < spec.bad_steps:",
        ("tests/runner/test_failures.py",),
        "one bad step fewer is forgiven",
    ),
    Mutant(
        "effcompress/runner/step.py",
        "hold(state.module, state.zeros)",
        "pass",
        ("tests/runner/test_sparsify.py::test_zeros_survive_training_in_weights_and_moments",),
        "zeros learn again",
    ),
    Mutant(
        "effcompress/runner/step.py",
        ("state.left_out = 0\n    mixture"),
        "mixture",
        ("tests/runner/test_failures.py",),
        "bad steps far apart add up",
    ),
    Mutant(
        "effcompress/saliency/average.py",
        "past, new = self.spec.decay, 1.0 - self.spec.decay",
        "past, new = self.spec.decay, 1.0",
        ("tests/saliency/test_average.py",),
        "the weight of a new step is not the rest of the decay's",
        survives="numerator and denominator both grow by 1 / (1 - decay), so the mean is the same",
    ),
    Mutant(
        "effcompress/saliency/average.py",
        "return {name: value / self.weight for name, value in self.values.items()}",
        "return dict(self.values)",
        ("tests/saliency/test_average.py::test_decay_by_hand",),
        "the bias of the first steps is not corrected",
    ),
    Mutant(
        "effcompress/saliency/average.py",
        "if len(self._recent) > self.spec.window:",
        "if len(self._recent) > self.spec.window + 1:",
        ("tests/saliency/test_average.py::test_window_forgets_what_is_older",),
        "the window is one step longer",
    ),
    Mutant(
        "effcompress/saliency/average.py",
        'self._over = self.spec.average == "between_cuts"',
        "self._over = False",
        ("tests/saliency/test_average.py::test_between_cuts_begins_anew",),
        "scores of before the cut go on counting",
    ),
    Mutant(
        "effcompress/saliency/average.py",
        "found[name].index_add_(0, original[name], score_G)",
        "found[name][: len(score_G)] += score_G",
        ("tests/saliency/test_average.py::test_units_keep_their_original_number_after_a_cut",),
        "scores of a shortened set stand at the wrong units",
    ),
    Mutant(
        "effcompress/saliency/criteria.py",
        "return weight * grad if signed else (weight * grad).abs_()",
        "return weight * grad if signed else grad.abs()",
        ("tests/saliency/test_criteria.py::test_three_numbers[taylor-knobs2-expected2]",),
        "first-order Taylor leaves the weight out",
    ),
    Mutant(
        "effcompress/saliency/criteria.py",
        "(weight * grad - weight.square() * hess * 0.5).abs_()",
        "(weight * grad + weight.square() * hess * 0.5).abs_()",
        ("tests/saliency/test_criteria.py::test_three_numbers[taylor_mixed-knobs4-expected4]",),
        "both orders have the same sign",
    ),
    Mutant(
        "effcompress/saliency/criteria.py",
        'return weight.abs() if norm == "l1" else weight.square()',
        "return weight.square()",
        ("tests/saliency/test_criteria.py::test_three_numbers[magnitude-knobs0-expected0]",),
        "magnitude is always squared",
    ),
    Mutant(
        "effcompress/selection/budget.py",
        "if params is None or self.params > params:",
        "if params is None or self.params >= params:",
        ("tests/selection/test_budget.py::test_the_size_that_was_asked_for_is_enough",),
        "one mini-group more goes than the schedule asked for",
    ),
    Mutant(
        "effcompress/selection/candidates.py",
        "return min(s.size, math.ceil(s.minimum / s.multiple) * s.multiple)",
        "return s.minimum",
        ("tests/selection/test_budget.py::test_what_always_remains_ends_on_multiples",),
        "what always remains ignores multiples",
    ),
    Mutant(
        "effcompress/selection/candidates.py",
        '"query": wide.get("attention", 0) * head,',
        '"query": head,',
        ("tests/selection/test_budget.py::test_columns_that_a_unit_owns",),
        "a query head in every group costs as much as one head",
    ),
    Mutant(
        "effcompress/selection/choose.py",
        "left = torch.arange(len(total_J), 0, -1)",
        "left = torch.full((len(total_J),), len(total_J))",
        (("tests/selection/test_choose.py::test_the_mean_of_a_kind_is_that_of_its_living_units"),),
        "per_kind means are over units long gone",
    ),
    Mutant(
        "effcompress/selection/choose.py",
        "mean_J = total_J.flip(0).cumsum(0).flip(0) / left",
        "mean_J = total_J.mean().expand(len(total_J))",
        (("tests/selection/test_choose.py::test_the_mean_of_a_kind_is_that_of_its_living_units"),),
        "per_kind means are those of the beginning",
    ),
    Mutant(
        "effcompress/selection/choose.py",
        "value, order = torch.sort(score_G.double(), stable=True)",
        "value, order = torch.sort(score_G.double(), descending=True)",
        (("tests/selection/test_choose.py::test_lockstep_takes_the_least_salient_of_every_layer"),),
        "the most salient go first",
    ),
    Mutant(
        "effcompress/selection/choose.py",
        "k = choices[int(value_K.argmin())]",
        "k = choices[int(value_K.argmax())]",
        (("tests/selection/test_choose.py::test_lockstep_takes_the_least_salient_of_every_layer"),),
        "the selector's highest value goes first",
    ),
    Mutant(
        "effcompress/selection/choose.py",
        "if pool not in first or known[k] < known[first[pool]]:",
        "if pool not in first:",
        (
            (
                "tests/selection/test_choose.py::test_of_a_pool_the_least_salient_goes_for_what"
                "_it_frees"
            ),
        ),
        "of a pool the first layer loses, whatever is salient",
    ),
    Mutant(
        "effcompress/selection/choose.py",
        "freed = 1 if raw else budget.freed(k)",
        "freed = 1",
        (
            (
                "tests/selection/test_choose.py::test_of_a_pool_the_least_salient_goes_for_what"
                "_it_frees"
            ),
        ),
        "pools compare raw saliency of units that free unequally much",
    ),
    Mutant(
        "effcompress/selection/choose.py",
        "return 1.0 - budget.width_after(k) / _begun(budget, k, begun)",
        "return 1.0 - budget.widths[budget.candidates[k].sets[0]] / _begun(budget, k, begun)",
        ("tests/runner/test_baselines.py::test_adapt_pruner_follows_its_rates",),
        "fractions are those before the cut, not behind it",
    ),
    Mutant(
        "effcompress/selection/choose.py",
        ("taken[k] += budget.step(k)\n        budget.take(k)"),
        ("budget.take(k)\n        taken[k] += budget.step(k)"),
        ("tests/selection/test_choose.py::test_blocks_are_compared_as_blocks",),
        "the step is asked for after the cut, where it may be another",
    ),
    Mutant(
        "effcompress/selection/reachability.py",
        "TOLERANCE = 0.005",
        "TOLERANCE = 0.05",
        ("tests/selection/test_budget.py::test_a_large_unit_does_not_overshoot",),
        "a size 5 % off counts as the target",
    ),
    Mutant(
        "effcompress/selection/reachability.py",
        "return self.candidates[k].after <= gone < self.candidates[k].until",
        "return self.candidates[k].after < gone <= self.candidates[k].until",
        ("tests/selection/test_ranges.py::test_a_kind_waits_until_enough_is_gone",),
        "the bounds of after and until are exchanged",
    ),
    Mutant(
        "effcompress/selection/reachability.py",
        "sizes.width(k) - self.stride(k, sizes) >= c.minimum",
        "sizes.width(k) - self.stride(k, sizes) >= c.minimum - 1",
        ("tests/selection/test_budget.py::test_minimum_is_kept",),
        "a width goes one below its minimum",
    ),
    Mutant(
        "effcompress/selection/reachability.py",
        "self.left(c.pool, sizes) - self.stride(k, sizes) < c.floor:",
        "self.left(c.pool, sizes) < c.floor:",
        ("tests/groups/test_spaces.py::test_layers_are_one_pool_with_a_floor",),
        "a pool goes one below its floor",
    ),
    Mutant(
        "effcompress/selection/reachability.py",
        "after < self.target * (1 - TOLERANCE):",
        "after < self.target * (1 - 10 * TOLERANCE):",
        (
            (
                "tests/selection/test_budget.py::test_any_order_of_cuts_is_priced_exactly_and_m"
                "eets_the_target"
            ),
        ),
        "the target may be missed by 5 %",
    ),
    Mutant(
        "effcompress/selection/schedules.py",
        "return Due(groups=groups) if begun and step % every == 0 else None",
        "return Due(groups=groups) if begun and step % every == 1 else None",
        ("tests/selection/test_schedules.py::test_continuous_every_n_steps_from_a_token",),
        "continuous cuts at other steps",
    ),
    Mutant(
        "effcompress/selection/schedules.py",
        "gone = None if share is None else 1.0 - (1.0 - share) ** 3",
        "gone = None if share is None else share**3",
        ("tests/selection/test_schedules.py::test_constant_rate_is_a_line_and_cubic_is_cubic",),
        "the cubic law cuts late instead of early",
    ),
    Mutant(
        "effcompress/selection/schedules.py",
        "return Due(params=round(first - (first - last) * gone))",
        "return Due(params=round(last + (first - last) * gone))",
        ("tests/selection/test_schedules.py::test_constant_rate_is_a_line_and_cubic_is_cubic",),
        "sizes grow instead of falling",
    ),
    Mutant(
        "effcompress/selection/schedules.py",
        "if share is None or gone is None or (share < 1.0 and step % every):",
        "if share is None or gone is None or step % every:",
        ("tests/selection/test_schedules.py::test_end_is_exact_whatever_the_step",),
        "the last cut is missed where the end is no multiple of every",
    ),
    Mutant(
        "effcompress/selection/schedules.py",
        "return Due(params=round(first - (done + 1) * each), again=True)",
        "return Due(params=round(first - (done + 1) * each))",
        (
            (
                "tests/selection/test_schedules.py::test_once_in_rounds_ends_at_the_target_in_e"
                "qual_steps"
            ),
        ),
        "rounds end after the first",
    ),
    Mutant(
        "effcompress/selection/selectors.py",
        'return score_K / (params_K if normalise == "per_parameter" else mean_K)',
        "return score_K / mean_K",
        ("tests/selection/test_choose.py::test_normalisations_by_hand",),
        "per_parameter is per_kind",
    ),
    Mutant(
        "effcompress/selection/sizes.py",
        "return self.width(k) % multiple or multiple",
        "return multiple",
        (
            (
                "tests/selection/test_budget.py::test_round_to_keeps_every_width_on_the_way_a_m"
                "ultiple"
            ),
        ),
        "round_to takes a whole block off a width that is no multiple",
    ),
    Mutant(
        "effcompress/selection/sizes.py",
        "self.params -= units * self.unit(k)",
        "self.params -= self.unit(k)",
        (
            (
                "tests/selection/test_budget.py::test_round_to_keeps_every_width_on_the_way_a_m"
                "ultiple"
            ),
        ),
        "a block frees the parameters of one unit",
    ),
    Mutant(
        "effcompress/selection/sizes.py",
        "first.setdefault(widths[name], name)",
        "first.setdefault(0, name)",
        ("tests/selection/test_budget.py::test_sets_of_a_candidate_may_have_other_widths",),
        "layers that lose units together are taken to be equally wide",
    ),
    Mutant(
        "effcompress/selection/sizes.py",
        "self._unit.pop(other, None)",
        "pass",
        (
            (
                "tests/selection/test_budget.py::test_any_order_of_cuts_is_priced_exactly_and_m"
                "eets_the_target"
            ),
        ),
        "what a unit frees is not counted anew when its neighbours go",
    ),
    Mutant(
        "effcompress/sparsity/apply.py",
        "if int(groups.min()) < pattern.zeros:",
        "if int(groups.max()) < pattern.zeros:",
        ("tests/sparsity/test_apply.py::test_a_bad_one_is_named",),
        "a single group of the pattern is enough",
    ),
    Mutant(
        "effcompress/sparsity/apply.py",
        'available["input_norm"] = square_I.clamp(min=0).sqrt()',
        'available["input_norm"] = square_I.clamp(min=0)',
        ("tests/sparsity/test_apply.py::test_norms_come_from_either_moment",),
        "the norm of an input lacks its root",
    ),
    Mutant(
        "effcompress/sparsity/magnitude.py",
        "math.floor(width * amount + 1e-9)",
        "math.ceil(width * amount - 1e-9)",
        (
            (
                "tests/sparsity/test_magnitude_wanda.py::test_counts_are_floors_but_not_of_roun"
                "ding_errors"
            ),
        ),
        "one weight more than asked for goes",
    ),
    Mutant(
        "effcompress/sparsity/magnitude.py",
        "index_RK = score_RK.argsort(dim=1, stable=True)[:, :zeros]",
        "index_RK = score_RK.argsort(dim=1, descending=True)[:, :zeros]",
        ("tests/sparsity/test_magnitude_wanda.py::test_magnitude_of_three_numbers",),
        "the largest weights become zero",
    ),
    Mutant(
        "effcompress/sparsity/magnitude.py",
        'width = columns if per == "row" else rows * columns',
        "width = columns",
        ("tests/sparsity/test_magnitude_wanda.py::test_magnitude_ranks_a_layer_or_its_rows",),
        "weights of a layer compete within rows only",
    ),
    Mutant(
        "effcompress/sparsity/apply.py",
        "own(p.grad).masked_fill_(own(zeros[name]), 0.0)",
        "pass",
        ("tests/runner/test_sparsify.py::test_zeros_survive_training_in_weights_and_moments",),
        "zeros learn in training",
    ),
    Mutant(
        "effcompress/track/curves.py",
        'found |= {f"loss/{domain}": loss for domain, loss in event.domain_loss.items()}',
        "pass",
        ("tests/test_track.py::test_tensorboard_shows_what_the_record_says",),
        "losses by domain are not tracked",
    ),
    Mutant(
        "effcompress/train/lora.py",
        "add(layer.get_base_layer().weight, layer.get_delta_weight(_NAME))",
        "pass",
        (("tests/runner/test_recover.py::test_low_rank_updates_change_matrices_in_layers_alone"),),
        "updates are dropped instead of merged",
    ),
    Mutant(
        "effcompress/train/step.py",
        "enumerate(starts, world.rank * len(starts))",
        "enumerate(starts)",
        (("tests/runner/test_gates.py::test_any_number_of_processes_learns_the_same_masks"),),
        "all processes draw the same gates",
    ),
    Mutant(
        "effcompress/train/lora.py",
        "lora_alpha=spec.alpha",
        "lora_alpha=1.0",
        ("tests/train/test_lora.py::test_an_update_is_scaled_by_alpha_over_rank",),
        "LoRA's alpha is ignored",
    ),
    Mutant(
        "effcompress/train/lora.py",
        "r=spec.rank,",
        "r=8,",
        ("tests/train/test_lora.py::test_an_update_is_scaled_by_alpha_over_rank",),
        "LoRA's rank is ignored",
    ),
    Mutant(
        "effcompress/train/lora.py",
        "lora_dropout=spec.dropout",
        "lora_dropout=0.0",
        ("tests/train/test_lora.py::test_dropout_stands_in_front_of_an_update[0.5-False]",),
        "LoRA's dropout is ignored",
    ),
    Mutant(
        "effcompress/train/loss.py",
        "theirs = teacher[-1] if last else teacher[i + 1]",
        "theirs = teacher[-1] if last else teacher[j + 1]",
        ("tests/train/test_distill.py::test_a_layer_in_the_middle_answers_to_its_own_number",),
        "hidden states are compared with the wrong layer of the teacher",
    ),
    Mutant(
        "effcompress/train/loss.py",
        "return temperature**2 * over_tokens(each_BT, trained_BT)",
        "return over_tokens(each_BT, trained_BT)",
        ("tests/train/test_distill.py::test_divergence[2.5]",),
        "the loss is not scaled back by the squared temperature",
    ),
    Mutant(
        "effcompress/train/loss.py",
        "functional.kl_div(own, theirs,",
        "functional.kl_div(theirs, own,",
        ("tests/train/test_distill.py::test_divergence[1.0]",),
        "KL the wrong way round",
    ),
    Mutant(
        "effcompress/train/loss.py",
        "theirs = theirs[..., self.channels]",
        "theirs = theirs[..., : len(self.channels)]",
        (
            (
                "tests/train/test_distill.py::test_hidden_states_of_the_layers_and_channels_tha"
                "t_are_left"
            ),
        ),
        "the first channels of the teacher instead of those that are left",
    ),
    Mutant(
        "effcompress/train/loss.py",
        "objective_B + self.spec.text_weight * text_B",
        "objective_B + text_B",
        ("tests/train/test_distill.py::test_terms_add_up_and_only_the_student_learns",),
        "the weight of the text is ignored",
    ),
    Mutant(
        "effcompress/train/loss.py",
        "self.teacher = teacher.eval().requires_grad_(False)",
        "self.teacher = teacher.train().requires_grad_(False)",
        ("tests/train",),
        "the teacher has dropout",
        survives=(
            "the declared families have no dropout in their configurations, so a teacher "
            "in training mode answers the same"
        ),
    ),
    Mutant(
        "effcompress/train/loss.py",
        "logits_BTV[:, :-1].flatten(0, 1).float(), ids_BT[:, 1:].flatten()",
        "logits_BTV[:, 1:].flatten(0, 1).float(), ids_BT[:, 1:].flatten()",
        ("tests/train/test_step.py::test_gradient_and_losses_equal_the_librarys_own",),
        "every token predicts itself",
    ),
    Mutant(
        "effcompress/train/loss.py",
        "weight_BT = trained_BT[:, 1:].to(each_BT.dtype)",
        "weight_BT = trained_BT[:, :-1].to(each_BT.dtype)",
        ("tests/train/test_loss.py::test_the_mask_belongs_to_the_token_that_is_predicted",),
        "the mask of prompts is one token late",
    ),
    Mutant(
        "effcompress/train/loss.py",
        "weight_BT.sum(1).clamp(min=1.0)",
        "weight_BT.shape[1]",
        ("tests/data/test_prompts.py::test_the_loss_of_what_is_trained_on",),
        "the loss is divided by all tokens, not by those trained on",
    ),
    Mutant(
        "effcompress/train/loss.py",
        "sum(values) / len(values)",
        "sum(values)",
        ("tests/train/test_step.py::test_gradient_and_losses_equal_the_librarys_own",),
        "a domain's loss is a sum over its rows",
    ),
    Mutant(
        "effcompress/train/step.py",
        "progress = tokens / total",
        "progress = max(0, tokens - 128) / total",
        ("tests/train/test_step.py::test_learning_rate_by_hand",),
        "the learning rate is a step late",
    ),
    Mutant(
        "effcompress/train/step.py",
        "through = (progress - spec.warmup)",
        "through = (progress - 0.0)",
        ("tests/train/test_step.py::test_learning_rate_by_hand",),
        "the cosine does not leave out the warm-up",
    ),
    Mutant(
        "effcompress/train/step.py",
        "left = max(0.0, (1.0 - progress) / spec.decay)",
        "left = max(0.0, (1.0 - progress) / spec.decay) ** 2",
        ("tests/train/test_step.py::test_learning_rate_by_hand",),
        "the decay is no line",
    ),
    Mutant(
        "effcompress/train/step.py",
        '"weight_decay": 0.0}',
        '"weight_decay": spec.weight_decay}',
        ("tests/train/test_step.py::test_update_equals_adamw_by_hand",),
        "gains and biases decay, too",
    ),
    Mutant(
        "effcompress/train/step.py",
        "floor = spec.floor * spec.peak",
        "floor = spec.floor",
        ("tests/train/test_step.py::test_learning_rate_by_hand",),
        "the floor is absolute, not a fraction of the peak",
    ),
    Mutant(
        "effcompress/train/step.py",
        "mean = found.objective.sum() / count",
        "mean = found.objective.mean()",
        ("tests/train/test_step.py::test_micro_batches_change_nothing[1]",),
        "micro-batches count fully instead of as their part of the batch",
    ),
    Mutant(
        "effcompress/train/step.py",
        "if not (count := int(used_B.sum())):",
        "if not (count := len(used_B)):",
        (("tests/data/test_prompts.py::test_rows_of_prompts_alone_do_not_thin_out_the_gradient"),),
        "rows of prompts alone thin out the gradient",
    ),
    Mutant(
        "effcompress/train/step.py",
        "if not torch.isfinite(loss_B).all():",
        "if False:",
        ("tests/train/test_step.py::test_a_loss_that_is_not_finite_names_the_domain",),
        "a loss that is not finite goes into the weights",
    ),
    Mutant(
        "effcompress/train/step.py",
        "nn.utils.clip_grads_with_norm_(parameters, spec.clip, norm_0)",
        "pass",
        ("tests/train/test_step.py::test_update_equals_adamw_by_hand",),
        "gradients are not clipped",
    ),
    Mutant(
        "effcompress/types.py",
        "return math.lcm(self.round_to, self.finish_on)",
        "return self.finish_on",
        ("tests/groups/test_find.py::test_a_width_ends_on_what_both_multiples_share",),
        "a width ends on a multiple of finish_on alone",
    ),
    Mutant(
        "effcompress/types.py",
        "index[key] = positions.transpose(0, 1).reshape(self.size, -1)",
        "index[key] = positions.reshape(self.size, -1)",
        ("tests/groups/test_find.py::test_units_between_an_outer_and_an_inner_axis",),
        "units of an inner axis own the wrong positions",
    ),
    Mutant(
        "effcompress/types.py",
        "skipped = {i + last if i < 0 else i for i in skip_layers}",
        "skipped = {i + last - 1 if i < 0 else i for i in skip_layers}",
        ("tests/groups/test_spaces.py::test_layers_to_skip_count_from_either_end",),
        "skip_layers: [-1] leaves another layer whole",
    ),
    Mutant(
        "effcompress/types.py",
        'max(limits.get("minimum", 1), self.floors.get(kind, 0))',
        'limits.get("minimum", 1)',
        ("tests/groups/test_spaces.py::test_experts_stay_as_many_as_a_token_is_sent_to",),
        "fewer experts stay than a token is sent to",
    ),
    Mutant(
        "effcompress/types.py",
        'limits["minimum"] = min(minimum, self.widths[name])',
        'limits["minimum"] = minimum',
        ("tests/groups/test_spaces.py::test_a_minimum_above_the_width_cuts_nothing",),
        "a minimum above the width is kept",
    ),
    Mutant(
        "plugins/adapt_pruner.py",
        "rate_K = (1.0 - amplitude * fraction_K.new_tensor(influence)).clamp(min=0.01)",
        "rate_K = (1.0 + amplitude * fraction_K.new_tensor(influence)).clamp(min=0.01)",
        ("tests/runner/test_baselines.py::test_adapt_pruner_follows_its_rates",),
        "influential layers lose more",
    ),
    Mutant(
        "plugins/adapt_pruner.py",
        "influence = [(means.get(i, centre) - centre) / largest for i in layer_K.tolist()]",
        "influence = [means.get(i, centre) - centre for i in layer_K.tolist()]",
        ("tests/runner/test_baselines.py::test_adapt_pruner_follows_its_rates",),
        "influence is not brought to magnitude 1",
    ),
    Mutant(
        "plugins/adapt_pruner.py",
        "new[str(layer)] = [total + value, count + 1]",
        "new[str(layer)] = [value, 1]",
        (
            (
                "tests/runner/test_interleaved.py::test_every_cut_is_that_of_an_independent_com"
                "putation"
            ),
        ),
        "only the last cut's influence counts",
    ),
    Mutant(
        "plugins/adapt_pruner.py",
        'linear=shards == "linear")',
        "linear=False)",
        (
            (
                "tests/runner/test_interleaved.py::test_every_cut_is_that_of_an_independent_com"
                "putation"
            ),
        ),
        "shards do not grow",
    ),
    Mutant(
        "plugins/adapt_pruner.py",
        "numbered = stage if restart else 0",
        "numbered = 0",
        (
            (
                "tests/runner/test_interleaved.py::test_every_cut_is_that_of_an_independent_com"
                "putation"
            ),
        ),
        "restart is ignored",
    ),
    Mutant(
        "plugins/adapt_pruner.py",
        ("if last >= tokens_per_step:\n        return None"),
        "return None",
        ("tests/runner/test_interleaved.py::test_without_training_behind_the_last_cut",),
        "nothing is trained behind the last cut, and nobody is told",
    ),
    Mutant(
        "plugins/efficientllm.py",
        "first = math.ceil(begin * step / tokens) if tokens else 0",
        "first = math.floor(begin * step / tokens) if tokens else 0",
        (
            (
                "tests/selection/test_schedules.py::test_the_cost_law_begins_with_the_first_ste"
                "p_behind_its_start"
            ),
        ),
        "the cost law's rounding",
    ),
    Mutant(
        "plugins/efficientllm.py",
        "hidden: Positive = 2,",
        "hidden: Positive = 1,",
        ("tests/selection/test_schedules.py::test_cost_law",),
        "a channel of the stream costs one event",
    ),
    Mutant(
        "plugins/efficientllm.py",
        "change_OI = removed_Op @ inverse_Ip[gone].inverse() @ inverse_Ip.T",
        "change_OI = removed_Op @ inverse_Ip.T",
        (
            (
                "tests/removal/test_compensate.py::test_update_is_the_best_there_is[0-independe"
                "nt-gone0]"
            ),
        ),
        "the OBS update lacks the inverse of its block",
    ),
    Mutant(
        "plugins/efficientllm.py",
        "read = gram.diagonal() > 0",
        "read = gram.diagonal() >= 0",
        ("tests/removal/test_compensate.py::test_update_is_the_best_there_is",),
        "dead inputs make the others' damping smaller",
    ),
    Mutant(
        "plugins/efficientllm.py",
        "new[:, gone] = 0.0",
        "pass",
        (
            (
                "tests/removal/test_compensate.py::test_update_is_the_best_there_is[0-independe"
                "nt-gone0]"
            ),
        ),
        "removed columns keep what rounding leaves",
    ),
    Mutant(
        "plugins/flap.py",
        "value = spread * weight.square().sum(0)",
        "value = spread * weight.abs().sum(0)",
        (("tests/runner/test_baselines.py::test_flap_ranks_everything_together_and_mends_biases"),),
        "FLAP's column norm is not squared",
    ),
    Mutant(
        "plugins/flap.py",
        "value = (value - value.mean()) / value.std().clamp(min=1e-30)",
        "value = value / value.std().clamp(min=1e-30)",
        (("tests/runner/test_baselines.py::test_flap_ranks_everything_together_and_mends_biases"),),
        "FLAP's values are not centred within a layer",
    ),
    Mutant(
        "plugins/flap.py",
        "return value / positions",
        "return value",
        (("tests/runner/test_baselines.py::test_flap_ranks_everything_together_and_mends_biases"),),
        "a head's value is the sum over its channels, not the mean",
    ),
    Mutant(
        "plugins/flap.py",
        'if kind in ("attention", "query"):',
        "if kind in ():",
        ("tests/plugins/test_criteria.py::test_flap",),
        "values of heads are not squared as the authors' code does",
    ),
    Mutant(
        "plugins/flap.py",
        "return weight, weight[:, gone] @ mean[gone].to(weight.dtype)",
        "return weight, -(weight[:, gone] @ mean[gone].to(weight.dtype))",
        (("tests/runner/test_baselines.py::test_flap_ranks_everything_together_and_mends_biases"),),
        "the bias loses the means instead of gaining them",
    ),
    Mutant(
        "plugins/flap.py",
        "fluctuation = fluctuation * ((n - 2) / (n - 1)) + distance / n",
        "fluctuation = fluctuation + distance / n",
        ("tests/measure/test_statistics.py::test_statistics_of_inputs",),
        "FLAP's running estimate does not forget",
    ),
    Mutant(
        "plugins/llm_pruner.py",
        'return 1.0 / (layer + 1) if keep == "first" else layer + 1.0',
        'return layer + 1.0 if keep == "first" else 1.0 / (layer + 1)',
        ("tests/runner/test_baselines.py::test_shortgpt_and_first_layers",),
        "the first layers go, the last stay",
    ),
    Mutant(
        "plugins/llm_pruner.py",
        "return mask_grad.sum(0).abs()",
        "return mask_grad.abs().sum(0)",
        ("tests/plugins/test_criteria.py::test_gradients_of_masks_by_hand",),
        "tokens of a micro-batch cannot cancel",
    ),
    Mutant(
        "plugins/llm_pruner.py",
        "return positions_MGB.amax(0)",
        "return positions_MGB.amin(0)",
        ("tests/plugins/test_criteria.py::test_reductions_by_hand",),
        "the least of the matrices counts, not the largest",
    ),
    Mutant(
        "plugins/mask_fisher.py",
        "return mask_grad.square().sum(0).mul_(0.5)",
        "return mask_grad.sum(0).square().mul_(0.5)",
        ("tests/plugins/test_criteria.py::test_gradients_of_masks_by_hand",),
        "the square of the sum over tokens, instead of the sum of squares",
    ),
    Mutant(
        "plugins/minitron.py",
        'return input_abs if kind == "hidden" else input_abs.square()',
        "return input_abs",
        ("tests/plugins/test_criteria.py::test_minitron",),
        "a head's channels add up without squares",
    ),
    Mutant(
        "plugins/minitron.py",
        "square_I = x.abs().mean(0).square()",
        "square_I = x.abs().square().mean(0)",
        ("tests/runner/test_baselines.py::test_the_same_share_of_every_layer[minitron]",),
        "the mean of squares instead of the square of the mean",
    ),
    Mutant(
        "effcompress/measure/held_out.py",
        "found = candidate.corrected(weight_OI, **_inputs(parts.seen))",
        "found = candidate.corrected(weight_OI, **_inputs(parts.all))",
        ("tests/runner/test_held_out.py::test_the_best_of_all_by_brute_force",),
        "damping is chosen on text that the fit has seen",
    ),
    Mutant(
        "effcompress/measure/held_out.py",
        "return *best.corrected(weight_OI, **_inputs(parts.all)), how",
        "return *best.corrected(weight_OI, **_inputs(parts.seen)), how",
        ("tests/runner/test_held_out.py::test_the_best_of_all_by_brute_force",),
        "the last fit leaves the held-out text unread",
    ),
    Mutant(
        "effcompress/measure/held_out.py",
        "    if not after < before - RESOLVED:\n",
        "    if not after < math.inf:\n",
        ("tests/runner/test_held_out.py::test_where_no_value_helps_the_weight_stays",),
        "a fit that is worse on other text than the weight takes its place",
    ),
    Mutant(
        "effcompress/measure/moments.py",
        "gram_II.addr_(more_I, c_I).addr_(c_I, sum_I)",
        "pass",
        ("tests/measure/test_moments.py::test_all_seen_and_held_are_those_of_their_tokens",),
        "the moments of a fit are those around the mean of the first sequence",
    ),
    Mutant(
        "effcompress/measure/moments.py",
        "        if self._waiting >= LATE:\n            self._flush()\n",
        "        if self._waiting >= LATE:\n            self._late = None\n",
        ("tests/measure/test_moments.py::test_products_wait_before_they_are_added",),
        "of a fit's text only the last tokens count",
    ),
    Mutant(
        "effcompress/algebra.py",
        "upper_II[rows.stop :, rows] = upper_II[rows, rows.stop :].T",
        "pass",
        ("tests/test_algebra.py::test_half_of_a_product_is_the_whole",),
        "below the diagonal of a Gram matrix there is nothing",
    ),
    Mutant(
        "effcompress/runner/sparsify.py",
        "if spec.twice:",
        "if True:",
        ("tests/runner/test_sparsify.py::test_how_often_the_text_goes_through_a_block",),
        "zeros always take two passes",
    ),
    Mutant(
        "effcompress/selection/choose.py",
        "            known.pop(j, None)\n",
        "            pass\n",
        (
            "tests/selection/test_choose.py::test_of_a_pool_the_least_salient_goes_for_what_it_frees",
        ),
        "in a pool the set that lost something is compared as before",
    ),
    Mutant(
        "effcompress/measure/stats.py",
        'return {"logits_to_keep": 1} if "logits_to_keep" in takes else {}',
        "return {}",
        (
            (
                "tests/measure/test_stats.py::test_a_pass_for_hooks_alone_leaves_the_output_matrix_"
                "out"
            ),
        ),
        "a pass for hooks computes all logits",
    ),
    Mutant(
        "effcompress/sparsity/magnitude.py",
        "if bool((gone_RK.sum(1) == zeros).all()):",
        "if True:",
        (
            (
                "tests/sparsity/test_magnitude_wanda.py::test_many_scores_are_ranked_as_a_stable_so"
                "rt_does"
            ),
        ),
        "of equal scores all go",
    ),
    Mutant(
        "effcompress/measure/streams.py",
        "stack.enter_context(instead(self._layer.get_submodule(form.alone), forward))",
        "pass",
        ("tests/measure/test_streams.py::test_no_part_of_a_layer_runs_twice",),
        "a refit runs every attention three times",
    ),
    Mutant(
        "effcompress/measure/streams.py",
        "more_TO = more_TO - bias.detach().double()",
        "pass",
        ("tests/measure/test_streams.py::test_the_same_model_has_nothing_to_learn[opt]",),
        "what a bias adds is fitted once more",
    ),
    Mutant(
        "plugins/refit.py",
        "right_OI = cross.double() + damping * weight.double()",
        "right_OI = cross.double()",
        ("tests/plugins/test_refit.py::test_ridge_regression_is_drawn_towards_the_weight",),
        "ridge regression draws towards zero, not towards the weight",
    ),
    Mutant(
        "plugins/refit.py",
        "more = target_mean - new.double() @ mean",
        "more = target_mean",
        ("tests/plugins/test_refit.py::test_an_intercept_is_not_punished",),
        "the intercept is the target's mean, whatever the weight does",
    ),
    Mutant(
        "plugins/refit.py",
        "covariance_II = gram.double().addr(mean, mean, alpha=-1.0)",
        "covariance_II = gram.double()",
        ("tests/plugins/test_refit.py::test_an_intercept_is_not_punished",),
        "the refit with an intercept uses moments that are not centred",
    ),
    Mutant(
        "plugins/shortgpt.py",
        "return 1.0 - cosine_similarity(before, after, dim=-1)",
        "return cosine_similarity(before, after, dim=-1)",
        ("tests/runner/test_baselines.py::test_shortgpt_and_first_layers",),
        "the most influential layers go first",
    ),
    Mutant(
        "plugins/sparsegpt.py",
        "return (work_BO / diagonal_B[:, None]).square()",
        "return work_BO.square()",
        ("tests/plugins/test_sparsegpt.py::test_three_inputs_that_have_nothing_in_common",),
        "SparseGPT chooses by magnitude",
    ),
    Mutant(
        "plugins/sparsegpt.py",
        "work_IO[stop:] -= factor_II[start:stop, stop:].T @ error_BO",
        "work_IO[stop:] += factor_II[start:stop, stop:].T @ error_BO",
        ("tests/plugins/test_sparsegpt.py::test_a_fixed_mask_is_removed_exactly[5-wanda]",),
        "the columns behind a block make the error worse",
    ),
    Mutant(
        "plugins/sparsegpt.py",
        "work_IO[dead_I] = 0.0",
        "pass",
        (
            (
                "tests/plugins/test_sparsegpt.py::test_dead_inputs_lose_their_weights_and_distu"
                "rb_nobody"
            ),
        ),
        "inputs that are always zero keep their weights",
    ),
    Mutant(
        "plugins/sparsegpt.py",
        "row_BB = factor_II[start:stop, start:stop] / diagonal_B1",
        "row_BB = factor_II[start:stop, start:stop]",
        ("tests/plugins/test_sparsegpt.py::test_two_inputs_by_hand",),
        "the update of a column is not divided by its diagonal",
    ),
    Mutant(
        "plugins/sparsegpt.py",
        "_whole(rows * stop, sparsity) - _whole(rows * start, sparsity)",
        "_whole(rows * (stop - start), sparsity)",
        (("tests/plugins/test_sparsegpt.py::test_the_share_is_exact_whatever_the_blocks[0.3-7]"),),
        "every block rounds down for itself",
    ),
    Mutant(
        "plugins/wanda.py",
        "return weight.abs() * input_norm",
        "return weight.abs()",
        ("tests/runner/test_baselines.py::test_the_same_share_of_every_layer[wanda_sp]",),
        "Wanda-sp without its inputs",
    ),
    Mutant(
        "plugins/wanda.py",
        "score_OI = weight.abs().float() * input_norm",
        "score_OI = weight.abs().float()",
        ("tests/sparsity/test_magnitude_wanda.py::test_wanda_of_three_numbers",),
        "Wanda is magnitude pruning",
    ),
    Mutant(
        "plugins/wanda.py",
        "low, high = (low, alpha) if fraction > sparsity else (alpha, high)",
        "low, high = (alpha, high) if fraction > sparsity else (low, alpha)",
        (
            (
                "tests/sparsity/test_magnitude_wanda.py::test_the_alpha_search_meets_the_share_"
                "row_by_row"
            ),
        ),
        "alpha is bisected to the wrong side",
    ),
    Mutant(
        "effcompress/network/masked.py",
        "square = wide.square() @ live_P / count",
        "square = wide.square() @ live_P / len(live_P)",
        ("tests/network/test_gates.py::test_a_norm_over_open_channels",),
        "norms divide by all channels, open or not",
    ),
    Mutant(
        "effcompress/network/masked.py",
        "return () if any(_norm_behind(axes, gate) for gate in gates) else gates",
        "return gates",
        ("tests/network/test_gates.py::test_masked_equals_cut[gqa_tied-gemma2]",),
        "a norm behind a block undoes its gate",
        "the norm divides the second factor out again, up to its epsilon",
    ),
    Mutant(
        "effcompress/network/masked.py",
        'x = x * (self._values["hidden"] != 0).to(x.dtype)',
        "pass",
        ("tests/network/test_gates.py::test_masked_equals_cut[gqa_tied-olmo2]",),
        "shut channels of the embedding reach what reads the stream itself",
    ),
    Mutant(
        "effcompress/network/masked.py",
        "if bias in params and (param, dim) not in self._reads:",
        "if bias in params:",
        ("tests/network/test_gates.py::test_masked_equals_cut[gqa_tied-gpt2]",),
        "a bias is multiplied by the gates of the inputs",
    ),
    Mutant(
        "effcompress/network/masked.py",
        "wide = wide - (wide @ live_P / count).unsqueeze(-1)",
        "wide = wide - wide.mean(-1, keepdim=True)",
        ("tests/network/test_gates.py::test_masked_equals_cut[gqa_tied-opt]",),
        "shut channels of a LayerNorm count into its mean",
    ),
    Mutant(
        "effcompress/network/gates.py",
        "maximize=True",
        "maximize=False",
        ("tests/network/test_gates.py::test_the_first_step_of_the_multipliers",),
        "multipliers descend, too",
    ),
    Mutant(
        "effcompress/network/gates.py",
        "self.logit_N.clamp_(-spec.limit, spec.limit)",
        "pass",
        ("tests/network/test_gates.py::test_logits_stay_within_their_limits",),
        "logits leave their limits and never come back",
    ),
    Mutant(
        "effcompress/network/gates.py",
        'asked: Any = {"expected": expected, "target": target * way}',
        'asked: Any = {"expected": expected, "target": target}',
        ("tests/runner/test_gates.py::test_the_penalty_follows_the_rising_target",),
        "the target is there at once",
    ),
    Mutant(
        "effcompress/network/gates.py",
        "shut = round(float(len(some) - open_N[row.start : row.stop].double().sum()))",
        "shut = int(len(some) - open_N[row.start : row.stop].double().sum())",
        ("tests/network/test_gates.py::test_gates_without_noise",),
        "too few gates are shut without noise",
    ),
    Mutant(
        "effcompress/network/gates.py",
        "generator = self._generator(step, micro, 0)",
        "generator = self._generator(step, 0, 0)",
        ("tests/network/test_gates.py::test_draws_are_a_function_of_their_place",),
        "all micro-batches draw the same gates",
    ),
    Mutant(
        "effcompress/network/gates.py",
        "value_N.backward(leaf_N.grad)",
        "self.logit_N.grad = leaf_N.grad",
        ("tests/network/test_gates.py::test_gradients_of_gates_are_those_of_finite_differences",),
        "logits get the gradient of the values",
    ),
    Mutant(
        "effcompress/runner/gates.py",
        "gates.forward.absorb(values, also_ends=prune.gates.compat)",
        "pass",
        ("tests/runner/test_gates.py::test_the_record_says_how_the_gates_went",),
        "the gates are dropped instead of multiplied in",
    ),
    Mutant(
        "effcompress/runner/step.py",
        "state.optimizer.state.clear()  # a training of its own begins",
        "pass",
        ("tests/runner/test_gates.py::test_moments_begin_anew_with_a_training_of_its_own",),
        "the continued stage goes on with old moments",
    ),
    Mutant(
        "plugins/sheared_llama.py",
        "return (linear * over_R + quadratic * over_R.square()).mean()",
        "return linear * over_R.mean() + quadratic * over_R.mean().square()",
        ("tests/network/test_gates.py::test_the_penalty_is_a_mean_of_penalties",),
        "the penalty of the mean, not the mean of penalties",
    ),
    Mutant(
        "plugins/sheared_llama.py",
        "return (0.8 * logit / temperature).sigmoid(), open_N",
        "return logit.sigmoid(), open_N",
        ("tests/network/test_gates.py::test_gates_without_noise",),
        "gates without noise are softer than published",
    ),
    Mutant(
        "plugins/cofi.py",
        "wanted_J = n + 0.5 - logit_G",
        "wanted_J = n - logit_G",
        ("tests/network/test_gates.py::test_a_common_offset_shuts_as_many_as_rounding[2]",),
        "one gate too many is shut at every offset",
    ),
    Mutant(
        "plugins/ziplm.py",
        "square_I = (square_I - 2 * u_I * inner_I",
        "square_I = (square_I - u_I * inner_I",
        ("tests/plugins/test_ziplm.py::test_blocks_of_removals_are_the_removals_one_by_one",),
        "norms of columns are wrong after the first removal of a block",
    ),
    Mutant(
        "plugins/ziplm.py",
        "error_G[order_G] = added_G.clamp(min=0.0).cumsum(0)",
        "error_G[order_G] = added_G.clamp(min=0.0)",
        ("tests/plugins/test_ziplm.py::test_scores_and_errors_by_hand",),
        "what a removal adds is taken for the error of all so far",
    ),
    Mutant(
        "plugins/darwinlm.py",
        "children += [parent] if last else []",
        "children += []",
        ("tests/plugins/test_ziplm.py::test_a_parent_that_is_best_stays",),
        "a parent that is better than all of its children is lost",
    ),
    Mutant(
        "effcompress/selection/knapsack.py",
        "for rounded in (math.ceil, math.floor):",
        "for rounded in (math.ceil,):",
        ("tests/selection/test_knapsack.py::test_two_modules_by_hand",),
        "a choice that just fits the budget is missed",
    ),
    Mutant(
        "effcompress/selection/knapsack.py",
        "if _sum(cost_ML, levels) <= budget * (1 + ROUNDING):",
        "if levels:",
        ("tests/selection/test_knapsack.py::test_rounding_up_never_passes_the_budget",),
        "a choice that was rounded down passes the budget",
    ),
    Mutant(
        "effcompress/estimate/allocation.py",
        "found[width] = max(seconds[width], *found.values(), 0.0)",
        "found[width] = seconds[width]",
        ("tests/estimate/test_allocation.py::test_a_table_is_monotone",),
        "a wider block may cost less than a narrower one",
    ),
    Mutant(
        "effcompress/estimate/allocation.py",
        'base += sum(cached(n, axes.widths[n]) for n in axes.axes("attention") if n not in chosen)',
        "base += 0",
        (
            "tests/estimate/test_allocation.py::test_keys_and_values_of_layers_that_are_not_cut_count",
        ),
        "the cache of layers that are not cut is forgotten",
    ),
    Mutant(
        "effcompress/estimate/allocation.py",
        "return tokens * (heads * per_group + whatever_heads * bool(heads))",
        "return tokens * (heads * per_group + whatever_heads)",
        (
            "tests/estimate/test_allocation.py::"
            "test_the_cache_is_as_large_as_the_one_that_the_class_fills",
        ),
        "the cache of latent attention stays when its block goes",
    ),
    Mutant(
        "effcompress/runner/allocate.py",
        "return costs.asked / missed if abs(missed - 1) > AIMED else None",
        "return costs.asked * missed if abs(missed - 1) > AIMED else None",
        ("tests/runner/test_allocate.py::test_blocks_that_promise_too_much_are_chosen_anew",),
        "a model that is too slow is chosen anew with a larger budget",
    ),
    Mutant(
        "effcompress/runner/latency.py",
        "kind: monotone({width: statistics.median(s) for width, s in by_width.items()})",
        "kind: monotone({width: statistics.fmean(s) for width, s in by_width.items()})",
        ("tests/runner/test_latency.py::test_medians_in_turns_by_a_fake_clock",),
        "one disturbed round decides what a width takes",
    ),
    Mutant(
        "effcompress/model/modeling_pruned.py",
        "square = wide.square().sum(-1, keepdim=True) / self.channels",
        "square = wide.square().mean(-1, keepdim=True)",
        ("tests/plugins/test_slicegpt.py::test_a_norm_divides_by_the_source_s_channels",),
        "a norm over a slice divides by the channels that are left",
    ),
    Mutant(
        "effcompress/network/rotated.py",
        "x = [_projected(x_1TD, bases[-1]) for x_1TD in streams]",
        "x = streams",
        ("tests/network/test_rotated.py::test_a_slice_is_a_projection[llama-keep]",),
        "a layer is measured on a stream that nothing was sliced off",
    ),
    Mutant(
        "effcompress/network/rotated.py",
        "found[side.param] = _along(value, side.dim, torch.diag(gain_D))",
        "found[side.param] = value",
        ("tests/network/test_rotated.py::test_a_slice_is_a_projection[llama-keep]",),
        "gains of norms get lost",
    ),
    Mutant(
        "effcompress/network/rotated.py",
        "found[name] = old + value.movedim(side.dim, -1) @ bias_D",
        "found[name] = old",
        ("tests/network/test_rotated.py::test_a_slice_is_a_projection[opt-keep]",),
        "biases of norms get lost",
    ),
    Mutant(
        "effcompress/network/rotated.py",
        '_replace(held, f"{name}.weight", behind_DK.T @ addition.lift_DK)',
        '_replace(held, f"{name}.weight", addition.lift_DK.T @ addition.before_DK)',
        ("tests/network/test_rotated.py::test_a_slice_is_a_projection[llama-keep]",),
        "a shortcut leaves the basis as it is",
    ),
    Mutant(
        "effcompress/network/rotated.py",
        "value = _along(value, side.dim, written_DD.T)",
        "value = _along(value, side.dim, written_DD)",
        ("tests/network/test_rotated.py::test_a_refit_is_the_least_squares_solution[llama]",),
        "what a refit makes of a block is transposed",
    ),
    Mutant(
        "effcompress/network/sliced.py",
        'mapped = one_width or (tied and rotate.tie == "keep")',
        "mapped = one_width",
        ("tests/network/test_sliced.py::test_sizes",),
        "a tie is split although it should be kept",
    ),
    Mutant(
        "plugins/slicegpt.py",
        "basis = torch.linalg.eigh(damped).eigenvectors.flip(1)",
        "basis = torch.linalg.eigh(damped).eigenvectors",
        ("tests/plugins/test_slicegpt.py::test_the_strongest_direction_comes_first",),
        "the directions that carry most are sliced off",
    ),
    Mutant(
        "plugins/reap.py",
        "return gate / gates.sum(-1) * output.norm(dim=-1)",
        "return gate * output.norm(dim=-1)",
        ("tests/plugins/test_reap.py::test_weights_that_do_not_sum_to_one",),
        "weights of a token's experts do not sum to 1",
    ),
    Mutant(
        "plugins/mone.py",
        "return (squares / max(1, n - 1)).sqrt().norm(), n, mean, squares",
        "return (squares / max(1, n)).sqrt().norm(), n, mean, squares",
        ("tests/plugins/test_mone.py::test_two_experts_by_hand",),
        "the deviation is a biased one",
    ),
    Mutant(
        "plugins/mone.py",
        "mean = old + apart * (n / (before + n))",
        "mean = old + apart / 2",
        ("tests/plugins/test_mone.py::test_sequences_are_merged",),
        "sequences of different length count alike",
    ),
    Mutant(
        "plugins/mone.py",
        "access = gate_mean * routed / routed.sum().clamp(min=1.0)",
        "access = gate_mean / routed.sum().clamp(min=1.0)",
        ("tests/plugins/test_mone.py::test_two_experts_by_hand",),
        "how often an expert is chosen plays no part",
    ),
    Mutant(
        "effcompress/removal/novices.py",
        "constant_D = means[name][ledger.positions(name, [unit])[0]]",
        "constant_D = means[name][unit % len(means[name])]",
        ("tests/runner/test_novices.py::test_masked_cut_and_by_hand",),
        "after a commit an expert's constant is another's mean",
    ),
    Mutant(
        "effcompress/removal/novices.py",
        "place_E[ledger.original[name][alive_G]] = alive_G.nonzero().flatten()",
        "place_E[alive_G.nonzero().flatten()] = alive_G.nonzero().flatten()",
        ("tests/runner/test_novices.py::test_masked_cut_and_by_hand",),
        "after a commit tokens go to other experts",
    ),
    Mutant(
        "effcompress/model/modeling_pruned.py",
        "weight_TE.scatter_add_(1, index_TK, weight_TK * ~there)",
        "weight_TE.scatter_add_(1, index_TK, (weight_TK > 0) * ~there * 1.0)",
        ("tests/runner/test_novices.py::test_masked_cut_and_by_hand",),
        "a constant is added without the router's weight",
    ),
    Mutant(
        "effcompress/measure/experts.py",
        "sums[name] / self._sent(name).clamp(min=1.0)[:, None]",
        "sums[name] / self._sent(name).max()",
        ("tests/runner/test_novices.py::test_a_run[qwen3_moe]",),
        "a constant is smaller the more seldom its expert was chosen",
    ),
    Mutant(
        "plugins/reap.py",
        "return output_norm * routed",
        "return output_norm",
        ("tests/plugins/test_reap.py::test_two_experts_by_hand",),
        "a sum over tokens becomes a mean",
    ),
    Mutant(
        "plugins/reap.py",
        "return output.square().sum(-1)",
        "return output.square().mean(-1)",
        ("tests/plugins/test_reap.py::test_two_experts_by_hand",),
        "the square of a norm is divided by the width",
    ),
    Mutant(
        "effcompress/measure/experts.py",
        "ones_N1 = weight_TK.new_ones(len(token_N), 1)",
        "ones_N1 = weight_TK[token_N, slot_N, None]",
        ("tests/measure/test_experts.py::test_five_criteria_of_every_family",),
        "the router's weight is in the output, and counts twice in REAP",
    ),
    Mutant(
        "effcompress/measure/experts.py",
        "gates_NK = weight_TK[token_N].double()",
        "gates_NK = weight_TK[slot_N].double()",
        ("tests/measure/test_experts.py::test_five_criteria_of_every_family",),
        "weights are normalised by those of other tokens",
    ),
    Mutant(
        "effcompress/measure/experts.py",
        "return torch.tensor([t / max(1, n) for t, n in zip(totals, tokens, strict=True)])",
        "return torch.tensor([t / max(1, max(tokens)) for t in totals])",
        ("tests/measure/test_experts.py::test_five_criteria_of_every_family",),
        "means are over the tokens of the busiest expert",
    ),
    Mutant(
        "effcompress/selection/choose.py",
        "part = order // (len(score_G) // parts)",
        "part = order % parts",
        ("tests/runner/test_experts.py::test_the_least_of_every_layer_go",),
        "groups of experts are taken to alternate",
    ),
    Mutant(
        "effcompress/removal/commit.py",
        "setattr(owner, name, buffer[keep.to(buffer.device)])",
        "setattr(owner, name, buffer[: len(keep)])",
        ("tests/contract/test_mask_equals_removal.py::test_masking_equals_removing",),
        "experts get the selection biases of others",
    ),
    Mutant(
        "effcompress/network/pruned_model.py",
        "setattr(owner, name, buffer[self.ledger.original[axis].to(buffer.device)])",
        "setattr(owner, name, buffer[: len(self.ledger.original[axis])])",
        ("tests/runner/test_experts.py::test_resumed_it_is_the_same",),
        "after a resume experts have the selection biases of others",
    ),
    Mutant(
        "effcompress/model/families/experts.py",
        "return self.count(config) * max(self.best, each)",
        "return chosen",
        ("tests/runner/test_experts.py::test_a_token_goes_to_experts_that_are_there",),
        "the groups chosen hold fewer experts than a token is sent to",
    ),
    Mutant(
        "effcompress/export/forms.py",
        "name: _on_cpu(held[name]) if name in held else",
        "name:",
        ("tests/export/test_forms.py::test_every_folder_is_the_same_model_again",),
        "a folder has no selection biases",
    ),
    Mutant(
        "effcompress/network/pruned_model.py",
        "for name, b in self.module.named_buffers() if name in stored",
        "for name, b in self.module.named_buffers() if name in stored and b.dim()",
        (
            "tests/groups/test_traced_families.py::test_an_export_is_the_same_model_in_plain_transformers",
        ),
        "constants of activations are zero in the folder",
    ),
    Mutant(
        "effcompress/model/modeling_pruned.py",
        "_remember(self.get_submodule(path), values)",
        "pass",
        (
            "tests/contract/test_more_families.py::test_every_form_is_the_same_model_in_plain_transformers[falcon_h1]",
        ),
        "multipliers of a state space are whatever was in memory",
    ),
    Mutant(
        "effcompress/groups/tracing/propose.py",
        "per_unit[name] = slots * head",
        "per_unit[name] = head",
        (
            "tests/groups/test_traced_families.py::test_layers_of_two_kinds_and_queries_with_a_gate_are_found",
        ),
        "a query head with a gate is as wide as one without",
    ),
    Mutant(
        "effcompress/model/small.py",
        "chosen = [i for i, look in enumerate(looks) if looks[:i].count(look) < each]",
        "chosen = list[int]()",
        (
            "tests/groups/test_traced_families.py::test_layers_of_two_kinds_and_queries_with_a_gate_are_found",
        ),
        "the small model has layers of the first sort alone",
    ),
    Mutant(
        "effcompress/groups/tracing/search.py",
        "draft = replace(draft, stays=(*draft.stays, kind))",
        "draft = replace(draft, stays=draft.stays)",
        ("tests/groups/test_traced_families.py::test_the_last_layer_that_counts_positions_stays",),
        "all layers with full attention may go, and nothing counts positions",
    ),
    Mutant(
        "effcompress/groups/tracing/declared.py",
        "if shapes.get(name) != tuple(p.shape):",
        "if name not in shapes:",
        ("tests/groups/test_template.py::test_a_wrong_declaration_is_refused_with_file_and_line",),
        "a declaration computes other sizes than the model has",
    ),
    Mutant(
        "effcompress/kept_layers.py",
        "yield name, [k for k, i in enumerate(layers) if i in value]",
        "yield name, [i for i in layers if i in value]",
        ("tests/test_kept_layers.py::test_counts_of_first_and_last_layers_and_lists_of_numbers",),
        "lists of layers' numbers keep the parent's numbers",
    ),
    Mutant(
        "effcompress/model/families/hybrids.py",
        'return 7 * config["linear_key_head_dim"] * _values(config)',
        'return 6 * config["linear_key_head_dim"] * _values(config)',
        ("tests/estimate/test_flops.py::test_a_state_costs_what_its_update_multiplies_and_adds",),
        "the decay of a recurrent state is free",
    ),
    Mutant(
        "effcompress/model/modeling_pruned.py",
        'if hasattr(own, "update_conv_state") and not hasattr(own, "update"):',
        'if hasattr(own, "no_such_state"):',
        (
            "tests/contract/test_more_families.py::test_every_form_is_the_same_model_in_plain_transformers[qwen3_5_text]",
        ),
        "a silent mixer gives the cache keys and values where it has a state",
    ),
    Mutant(
        "effcompress/export/forms.py",
        "groups.of_stream(family, then, (stated / epsilon) ** 0.5)",
        "groups.of_stream(family, then, stated / epsilon)",
        (
            "tests/contract/test_more_families.py::test_every_form_is_the_same_model_in_plain_transformers[qwen3_5_text]",
        ),
        "a stream of another scale does not make up for another epsilon",
    ),
    Mutant(
        "effcompress/removal/modules.py",
        "getattr(layers[j - 1], name).mul_(getattr(layers[j], name))",
        "getattr(layers[j - 1], name).mul_(1.0)",
        (
            "tests/contract/test_more_families.py::test_masked_and_removed_are_the_same[gemma4_text-layer]",
        ),
        "the scale of a layer that goes is lost",
    ),
    Mutant(
        "effcompress/groups/axes.py",
        "kv = str(family.kv_layer(config, i))",
        "kv = str(i)",
        (
            "tests/contract/test_more_families.py::test_masked_and_removed_are_the_same[gemma4_text-attention]",
        ),
        "a layer with another's keys and values keeps its query heads when these go",
    ),
)
