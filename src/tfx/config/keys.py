"""The dotted keys of settings, and which of them an unknown one stands for."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from tfx.config.schema import Root
from tfx.errors import UserError, listed

# What transformers, fairseq, nanoGPT and Lightning call a setting.
OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "seed": ("random_seed", "manual_seed"),
    "model.width": ("d_model", "hidden_size", "hidden_dim", "n_embd", "embed_dim"),
    "model.heads": ("nhead", "n_head", "n_heads", "num_heads", "num_attention_heads"),
    "model.ffn_width": ("d_ff", "ffn_dim", "intermediate_size", "dim_feedforward"),
    "model.encoder_layers": ("num_encoder_layers", "encoder_depth"),
    "model.decoder_layers": ("num_decoder_layers", "num_layers", "n_layer", "n_layers", "num_hidden_layers"),
    "model.context": ("block_size", "max_length", "max_seq_length", "max_position_embeddings", "n_positions"),
    "dataset.batch_tokens": ("batch_size", "train_batch_size", "per_device_train_batch_size"),
    "optimizer.lr": ("learning_rate", "base_lr", "max_lr"),
    "optimizer.betas": ("beta1", "beta2", "adam_betas", "adam_beta1", "adam_beta2"),
    "optimizer.eps": ("epsilon", "adam_epsilon"),
    "optimizer.weight_decay": ("wd",),
    "optimizer.clip_norm": ("grad_clip", "clip_grad", "clip_grad_norm", "gradient_clip_val", "max_grad_norm"),
    "schedule.warmup": ("warmup_steps", "warmup_iters", "warmup_ratio", "warmup_updates", "num_warmup_steps"),
    "schedule.final": ("min_lr",),
    "schedule": ("scheduler", "lr_scheduler", "lr_scheduler_type"),
    "trainer.budget.steps": ("max_steps", "num_steps", "max_iters", "max_updates", "train_steps"),
    "trainer.budget.tokens": ("epochs", "max_epochs", "num_epochs", "num_train_epochs"),
    "trainer.precision": ("fp16", "bf16", "amp", "dtype", "torch_dtype"),
    "trainer.accumulation": ("accumulate_grad_batches", "gradient_accumulation_steps", "grad_accum_steps"),
    "trainer.activation_checkpointing": ("gradient_checkpointing",),
    "trainer.label_smoothing": ("label_smoothing_factor",),
    "trainer.compile": ("torch_compile",),
    "trainer.devices": ("gpus", "num_gpus", "world_size", "nproc_per_node"),
    "trainer.validate_every": ("eval_every", "eval_steps", "eval_interval", "val_check_interval"),
    "trainer.log_every": ("log_interval", "logging_steps", "log_every_n_steps"),
    "trainer.save.every_steps": ("save_steps", "save_interval", "checkpoint_interval"),
    "trainer.save.keep": ("save_total_limit",),
    "evaluation.beam": ("beam_size", "num_beams"),
    "evaluation.temperature": ("temp",),
    "init_from": ("checkpoint", "model_name_or_path", "pretrained"),
    "hydra.run.dir": ("output_dir", "out_dir", "save_dir"),
}


def all_keys(schema: Any = Root, prefix: str = "") -> list[str]:
    """Every dotted key of a schema, groups included."""
    found: list[str] = []
    for f in fields(schema):
        found.append(f"{prefix}{f.name}")
        if is_dataclass(f.default_factory):
            found += all_keys(f.default_factory, f"{prefix}{f.name}.")
    return found


def unknown_key(name: str, known: Sequence[str]) -> UserError:
    """The error for a key that is none of ``known``, with the one that it stands for.

    That is what another library calls so, else one of the same name elsewhere, else one that is written alike.
    """
    group, _, last = name.rpartition(".")
    meant = [
        key for key, others in OTHER_NAMES.items() if last in others and (key in known or key.startswith("hydra."))
    ]
    meant = meant or [key for key in known if _last(key) == last]
    if len(meant) == 1:
        return UserError(f"key '{name}' is unknown: did you mean '{meant[0]}'?")
    siblings = [key for key in known if key.rpartition(".")[0] == group]
    close = difflib.get_close_matches(last, map(_last, siblings), n=1, cutoff=0.6)
    if close:
        return UserError(f"key '{name}' is unknown: did you mean '{f'{group}.'.lstrip('.')}{close[0]}'?")
    close = [] if siblings else difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    hint = f": did you mean '{close[0]}'?" if close else listed(siblings or known, "see `tfx train --help`")
    return UserError(f"key '{name}' is unknown{hint}")


def _last(key: str) -> str:
    return key.rpartition(".")[2]
