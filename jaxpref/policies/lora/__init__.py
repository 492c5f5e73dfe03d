"""LoRA: adapters beside the policy's kernels, and their files in PEFT's format."""

from jaxpref.policies.lora.adapters import ALL_LAYERS, LoraConfig, attach, dense_layers, init, merge
from jaxpref.policies.lora.peft import load as load_peft
from jaxpref.policies.lora.peft import save as save_peft

__all__ = ["ALL_LAYERS", "LoraConfig", "attach", "dense_layers", "init", "load_peft", "merge", "save_peft"]
