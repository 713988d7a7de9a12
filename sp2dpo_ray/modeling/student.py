"""Loading the student: tokenizer, weights, adapters; and naming exactly which student it is.

In: a model id or folder. Out: transformers and peft objects. Invariant: weights come from
safetensors, code never comes with them, and `fingerprint` changes when weights, tokenizer or chat
template change.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from sp2dpo_ray.config import LoraSection
from sp2dpo_ray.core.files import ADAPTER, MERGED
from sp2dpo_ray.core.hashing import sha256_hex, sha256_once
from sp2dpo_ray.errors import ConfigError, TrainingError
from sp2dpo_ray.modeling.attention import implementation
from sp2dpo_ray.modeling.layout import PLAIN
from sp2dpo_ray.modeling.lora import speed_up

QUANTIZED = "nf4"
# transformers loads DeepSpeed wherever it is installed, and that warns of a machine without a GPU
logging.getLogger("DeepSpeed").addFilter(
    lambda record: "Setting accelerator to CPU" not in record.getMessage()
)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, QUANTIZED: torch.bfloat16}
IDENTIFYING = ("*.safetensors", "config.json", "tokenizer*", "*.jinja", "special_tokens_map.json",
               "vocab.json", "merges.txt")  # fmt: skip


@dataclass(frozen=True, slots=True)
class StudentRef:
    """A student that can be loaded on any machine: a folder or a hub id at a commit."""

    model: str
    revision: str | None
    fingerprint: str


def find_student(model: str, revision: str | None) -> StudentRef:
    """The student that `model` names; ConfigError if there is none, before anything is paid."""
    path = Path(model).expanduser()
    if path.is_dir():
        return StudentRef(str(path.resolve()), None, _folder_fingerprint(path))
    commit = _hub_commit(model, revision)
    return StudentRef(model, commit, sha256_hex([model, commit]))


def _hub_commit(model: str, revision: str | None) -> str:
    """The commit that a hub id stands for: as the hub says, else as this machine has it cached."""
    try:
        return str(HfApi().model_info(model, revision=revision, timeout=20).sha)
    except HFValidationError:
        raise ConfigError(
            f"student.model: no folder {model!r}, and it is no Hugging Face id"
        ) from None
    except Exception as error:  # no network, no such model, no access: many unrelated types
        try:
            cached = snapshot_download(model, revision=revision, local_files_only=True)
        except Exception:
            raise ConfigError(
                f"student.model: no folder {model!r} here, and the Hugging Face hub did not give "
                f"a model of that id (revision {revision}): {type(error).__name__}. Check the id, "
                "the network, or use student.model: tiny"
            ) from error
        return Path(cached).name  # a cached snapshot's folder is named by its commit


def _folder_fingerprint(path: Path) -> str:
    files = sorted({file for pattern in IDENTIFYING for file in path.glob(pattern)})
    if not any(file.suffix == ".safetensors" for file in files):
        raise ConfigError(
            f"student.model: {path} holds no .safetensors file; other formats are not loaded"
        )
    return sha256_hex({file.name: sha256_once(file) for file in files})


def has_changed(path: Path, fingerprint: str) -> bool:
    """Whether a folder holds another student than it did; a hub id at a commit cannot."""
    return path.is_dir() and _folder_fingerprint(path) != fingerprint


def load_tokenizer(student: StudentRef) -> Any:
    """The student's tokenizer, with a padding token (masked everywhere, so any will do)."""
    tokenizer = AutoTokenizer.from_pretrained(student.model, revision=student.revision)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    student: StudentRef, precision: str, layout: str = PLAIN, *, varlen: bool = True
) -> Any:
    """The frozen base model, in evaluation mode, attending for that layout."""
    model = AutoModelForCausalLM.from_pretrained(
        student.model,
        revision=student.revision,
        dtype=DTYPES[precision],
        use_safetensors=True,
        trust_remote_code=False,
        attn_implementation=implementation(layout, varlen),
        quantization_config=_four_bit() if precision == QUANTIZED else None,
    )
    return model.requires_grad_(False).eval()


def _four_bit() -> Any:
    """Weights as QLoRA keeps them (Dettmers et al. 2023): 4-bit normal floats, their scales
    quantised too, products in bf16."""
    if not (torch.cuda.is_available() and find_spec("bitsandbytes")):
        raise ConfigError(
            f"train.precision: {QUANTIZED} needs bitsandbytes and a CUDA GPU; pip install "
            "'sp2dpo-ray[quantized]' on every GPU node, or train.precision: bf16"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=QUANTIZED,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def student_to_train(
    student: StudentRef,
    lora: LoraSection | None,
    precision: str,
    layout: str,
    seed: int,
    fused: bool,
    varlen: bool = True,
) -> Any:
    """The student with what is trained marked: fresh adapters, or without `lora` every weight."""
    model = without_dropout(load_model(student, precision, layout, varlen=varlen))
    if lora is None:
        return model.requires_grad_(True)
    return add_adapter(model, lora, seed=seed, fused=fused)


def without_dropout(model: Any) -> Any:
    """The model with none of its own dropout (older architectures have some): the reference has
    none, and a policy with it would begin with margins of noise. An adapter's comes later."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):  # given to functions
                setattr(module, name, 0.0)
    return model


def save_student(
    student: StudentRef,
    lora: LoraSection | None,
    precision: str,
    trained: dict[str, Tensor],
    tokenizer: Any,
    output: Path,
) -> None:
    """The adapter by itself, and the student with it merged in; without `lora` the student alone.

    trained: what training changed, by the names of `student_to_train`. The student is loaded anew,
    on the CPU, so that it does not matter how its weights lay while it was trained.
    """
    for name in (ADAPTER, MERGED):
        shutil.rmtree(output / name, ignore_errors=True)
    model = load_model(student, precision)
    if lora is not None:
        model = add_adapter(model, lora, seed=0, fused=False)
    unknown = model.load_state_dict(trained, strict=False).unexpected_keys
    if unknown:
        raise TrainingError(f"trained weights {unknown[:3]} are not of {type(model).__name__}")
    if lora is not None:
        # False: the vocabulary is untouched, and asking the hub about it would need a network
        model.save_pretrained(output / ADAPTER, save_embedding_layers=False)
        model = model.merge_and_unload()
    model.save_pretrained(output / MERGED)
    tokenizer.save_pretrained(output / MERGED)


def add_adapter(model: Any, lora: LoraSection, *, seed: int, fused: bool = True) -> Any:
    """The model with fresh LoRA adapters; equal seeds give equal adapters on every worker.

    fused: compute each base layer with its adapter, see `lora.py`.
    """
    torch.manual_seed(seed)
    present = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    missing = sorted(set(lora.target_modules) - present)
    if missing:
        raise ConfigError(
            f"student.lora.target_modules: {missing} are not in {type(model).__name__}"
        )
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    if fused:
        speed_up(adapted)
    return adapted


def trainable(model: Any) -> list[torch.nn.Parameter]:
    """The parameters that training changes, in a fixed order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
