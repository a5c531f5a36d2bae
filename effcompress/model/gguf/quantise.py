"""Quantises a gguf file, by gguf's own quantisers or by llama.cpp's, and reads the weights that the
quantised file holds back into the model.
"""

import importlib.util
import math
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from gguf import (
    GGML_QUANT_SIZES,
    GGML_QUANT_VERSION,
    GGMLQuantizationType,
    GGUFReader,
    GGUFValueType,
    GGUFWriter,
    LlamaFileType,
    quants,
)
from numpy.typing import NDArray

from effcompress.errors import RunError, SourceError
from effcompress.model.cache import atomically

Own = Literal["Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"]
"""Types that gguf's Python package makes: blocks of 32 weights of a row with one scale."""
ByLlamaCpp = Literal["Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q3_K_M", "Q2_K"]
"""Mixtures of types that llama.cpp makes: super-blocks of 256 weights of a row."""
OWN: tuple[str, ...] = get_args(Own)
BY_LLAMA_CPP: tuple[str, ...] = get_args(ByLlamaCpp)

_FILE_TYPE, _VERSION = "general.file_type", "general.quantization_version"
_TOOL = "llama-quantize"
_BINDING = "cyllama"
_CALL = """
import sys
import cyllama.llama.llama_cpp as cpp
cpp.disable_logging()
how = cpp.LlamaModelQuantizeParams()
how.ftype = int(sys.argv[3])
cpp.model_quantize(sys.argv[1], sys.argv[2], how)
"""


def require_quantiser(name: str) -> None:
    """Raises SourceError where nothing on this machine makes the type."""
    if name in OWN or shutil.which(_TOOL) or importlib.util.find_spec(_BINDING):
        return
    raise SourceError(
        f"{name} is made by llama.cpp's own quantiser, which is not on this machine",
        where=f"--quantise {name}",
        fix=f"Put `{_TOOL}` of llama.cpp on PATH, or `pip install {_BINDING}`; without either: "
        f"{', '.join(OWN)}.",
    )


def quantise(plain: Path, target: Path, name: str) -> dict[str, int]:
    """Writes ``plain``, a gguf file of F32, to ``target`` with its matrices quantised; returns
    type -> weights stored in it.

    Of gguf's own types, a matrix whose rows are no multiple of 32 stays F16, the output matrix (the
    embedding where both are tied) has Q8_0, and vectors and routers stay F32; llama.cpp decides for
    itself what its mixtures hold. Raises RunError where llama.cpp fails.
    """
    with atomically(target) as work:
        if name in OWN:
            _by_gguf(plain, work, GGMLQuantizationType[name])
        else:
            _by_llama_cpp(plain, work, name)
    found = Counter[str]()
    for tensor in GGUFReader(target).tensors:
        found[tensor.tensor_type.name] += int(tensor.n_elements)
    return dict(found.most_common())


def _by_gguf(plain: Path, target: Path, kind: GGMLQuantizationType) -> None:
    stated = GGUFReader(plain)
    names = {tensor.name for tensor in stated.tensors}
    last = "output.weight" if "output.weight" in names else "token_embd.weight"
    architecture = str(stated.fields["general.architecture"].contents())
    writer = GGUFWriter(target, architecture)
    try:
        for field in stated.fields.values():
            if field.name in ("general.architecture", _FILE_TYPE) or field.name[:5] == "GGUF.":
                continue
            value, *_ = field.types
            inner = field.types[-1] if value == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), value, sub_type=inner)
        writer.add_file_type(LlamaFileType[f"MOSTLY_{kind.name}"])
        writer.add_quantization_version(GGML_QUANT_VERSION)
        types = {
            tensor.name: _stored(tensor.name, tensor.data, kind, tensor.name == last)
            for tensor in stated.tensors
        }
        for tensor in stated.tensors:
            block, size = GGML_QUANT_SIZES[types[tensor.name]]
            shape = tuple(tensor.data.shape)
            stored = math.prod(shape) // block * size
            plain_type = np.dtype(np.float32)
            writer.add_tensor_info(tensor.name, shape, plain_type, stored, types[tensor.name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in stated.tensors:
            values = np.ascontiguousarray(tensor.data, dtype=np.float32)
            writer.write_tensor_data(quants.quantize(values, types[tensor.name]))
    finally:
        writer.close()


def _stored(
    name: str, values: NDArray[np.float32], kind: GGMLQuantizationType, last: bool
) -> GGMLQuantizationType:
    """Returns the type that a tensor of the plain file is stored in, as llama.cpp would choose."""
    routes = name.endswith(("ffn_gate_inp.weight", "ssm_conv1d.weight", "shortconv.conv.weight"))
    if values.ndim < 2 or not name.endswith("weight") or "norm" in name or routes:
        return GGMLQuantizationType.F32
    if values.shape[-1] % GGML_QUANT_SIZES[kind][0] == 0:
        return GGMLQuantizationType.Q8_0 if last else kind
    most = float(np.abs(values).max(initial=0.0))
    half = most <= float(np.finfo(np.float16).max)
    return GGMLQuantizationType.F16 if half else GGMLQuantizationType.F32


def _by_llama_cpp(plain: Path, target: Path, name: str) -> None:
    """Runs llama.cpp's quantiser in a process of its own, which a crash would end."""
    number = int(LlamaFileType[f"MOSTLY_{name}"])
    command = [sys.executable, "-c", _CALL, str(plain), str(target), str(number)]
    if tool := shutil.which(_TOOL):
        command = [tool, str(plain), str(target), name]
    done = subprocess.run(  # noqa: S603 (what is run is llama.cpp, as found on PATH)
        command, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode or not target.is_file():
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise RunError(f"llama.cpp did not quantise it: {(said or ['no reason'])[-1]}", where=name)


def read_back(
    params: Mapping[str, torch.Tensor], plain: Path, quantised: Path
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields every matrix of a model with the values that the quantised file holds for it, in fp32.

    ``params`` are those that ``plain`` was written from. A gguf file has the rows of a matrix in
    another order, and several matrices may be one there; but a row stays what it is, so each is
    found by its bytes in the plain file. Biases of experts are not quantised. Raises RunError where
    a row is not there.
    """
    before = {
        t.name: _upright(t.name, t.data) for t in GGUFReader(plain).tensors if t.data.ndim > 1
    }
    rows = dict[bytes, tuple[str, int]]()
    for name, values in before.items():
        flat = values.reshape(-1, values.shape[-1])
        rows.update((flat[k].tobytes(), (name, k)) for k in range(len(flat)))
    stored = {t.name: t for t in GGUFReader(quantised).tensors}
    made = dict[str, NDArray[np.float32]]()
    for name in before:
        values = quants.dequantize(stored[name].data, stored[name].tensor_type)
        values = _upright(name, values.astype(np.float32, copy=False))
        made[name] = values.reshape(-1, values.shape[-1])
    for name, p in params.items():
        if p.dim() > 1 and not name.endswith("bias"):
            yield name, _rows(name, p, rows, made)


def _upright(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The values with a model's rows. llama.cpp has what makes keys of a latent vector by columns,
    for each head.
    """
    turned = name.endswith("attn_k_b.weight")
    return np.ascontiguousarray(values.swapaxes(-1, -2)) if turned else values


def _rows(
    name: str,
    p: torch.Tensor,
    rows: Mapping[bytes, tuple[str, int]],
    made: Mapping[str, NDArray[np.float32]],
) -> torch.Tensor:
    for turned in (False, True):  # a matrix that is stored as [inputs, outputs] here
        mine = (p.transpose(-1, -2) if turned else p).detach().to("cpu", torch.float32)
        flat = mine.contiguous().numpy().reshape(-1, mine.shape[-1])
        places = [rows.get(flat[k].tobytes()) for k in range(len(flat))]
        if all(places):
            found = np.stack([made[at[0]][at[1]] for at in places if at is not None])
            values = torch.from_numpy(found).view(mine.shape)
            return values.transpose(-1, -2) if turned else values
    raise RunError("this weight is not in the gguf file as it is in the model", where=name)
