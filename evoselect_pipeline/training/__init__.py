"""The student: loading models and adapters, and LoRA fine-tuning."""
