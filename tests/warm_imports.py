"""What the parent of warm processes (`tests.warm`) imports once, so that its children need not."""

import torch.distributed
import torch.distributed.fsdp
import torch.nn.parallel
import transformers.generation.utils
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import effcompress.cli
import effcompress.commands.evaluate
import effcompress.runner.run
import tests.distributed.worker
import tests.proving

READY = (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    effcompress.cli,
    effcompress.commands.evaluate,
    effcompress.runner.run,
    tests.distributed.worker,
    tests.proving,
    torch.distributed.fsdp,
    torch.nn.parallel,
    transformers.generation.utils,
)
