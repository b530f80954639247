"""llama.cpp (ggml) through llama-cpp-python: a decoding step at bf16, Q8_0 (int8), Q4_0 (int4) and Q2_K (int2).

The step's network is GPT-2's, which llama.cpp knows. It computes the keys and values of the context itself, from the
same tokens, and keeps them as f16; before each timed step the last token is taken out of its cache.
"""

from __future__ import annotations

import ctypes
from typing import Any

import gguf
import llama_cpp
import numpy as np
import torch

from graphc.tools.bench.case import Case
from graphc.tools.bench.engines import Bind
from graphc.tools.bench.workloads import CONTEXT, decode_tokens
from graphc.tools.zoo import gpt

_TYPES = {
    "bf16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16,
    "int8": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "int4": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "int2": llama_cpp.LLAMA_FTYPE_MOSTLY_Q2_K,
}
# Of the network's names, one after the other.
_NAMES = {
    "layers.": "blk.",
    "attention_norm": "attn_norm",
    "feed_forward_norm": "ffn_norm",
    "qkv": "attn_qkv",
    "projection": "attn_output",
    "up.": "ffn_up.",
    "down.": "ffn_down.",
}
_OUTER = {
    "tokens.weight": "token_embd.weight",
    "positions.weight": "position_embd.weight",
    "head.weight": "output.weight",
    "norm.weight": "output_norm.weight",
    "norm.bias": "output_norm.bias",
}


def prepare(case: Case) -> None:
    source = case.folder / "float.gguf"
    writer = gguf.GGUFWriter(source, "gpt2")
    writer.add_block_count(gpt.LAYERS)
    writer.add_context_length(gpt.POSITIONS)
    writer.add_embedding_length(gpt.WIDTH)
    writer.add_feed_forward_length(4 * gpt.WIDTH)
    writer.add_head_count(gpt.HEADS)
    writer.add_layer_norm_eps(1e-5)
    writer.add_vocab_size(gpt.VOCABULARY)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for name, tensor in case.work.build().state_dict().items():
        writer.add_tensor(_rename(name), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.pure, options.nthread = _TYPES[case.precision], True, 2
    if llama_cpp.llama_model_quantize(bytes(source), bytes(case.folder / "model.gguf"), ctypes.byref(options)):
        raise RuntimeError("llama_model_quantize failed")
    source.unlink()


def reference(case: Case) -> list[torch.Tensor]:
    """The logits by PyTorch, of the network with the weights that the file holds; so is its context."""
    network = case.work.build()
    assert isinstance(network, gpt.DecodingStep)
    stored = {item.name: item for item in gguf.GGUFReader(case.folder / "model.gguf").tensors}
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            item = stored[_rename(name)]
            tensor.copy_(torch.from_numpy(gguf.dequantize(item.data, item.tensor_type)).view(tensor.shape))
        *context, token = decode_tokens(0)
        past = gpt.past(network, torch.stack(context))
        logits: torch.Tensor = network(token.view(1, 1), torch.tensor([CONTEXT]), *past)[0]
    return [logits]


def _rename(name: str) -> str:
    if name in _OUTER:
        return _OUTER[name]
    for ours, theirs in _NAMES.items():
        name = name.replace(ours, theirs)
    return name


def load(case: Case) -> Bind:
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(
        bytes(case.folder / "model.gguf"), llama_cpp.llama_model_default_params()
    )
    options = llama_cpp.llama_context_default_params()
    options.n_ctx, options.n_threads, options.n_threads_batch = 2 * CONTEXT, case.threads, case.threads
    context = llama_cpp.llama_init_from_model(model, options)
    if not model or not context:
        raise RuntimeError("llama.cpp refused the model")
    *past, token = decode_tokens(0).tolist()  # those of the inputs, whatever `bind` is given
    memory = llama_cpp.llama_get_memory(context)
    _decode(context, (llama_cpp.llama_token * CONTEXT)(*past))
    tokens = (llama_cpp.llama_token * 1)(token)

    def run() -> list[Any]:
        llama_cpp.llama_memory_seq_rm(memory, 0, CONTEXT, -1)
        _decode(context, tokens)
        return [np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (1, 1, gpt.VOCABULARY))]

    return lambda inputs: run


def _decode(context: Any, tokens: Any) -> None:
    if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, len(tokens))):
        raise RuntimeError("llama_decode failed")
