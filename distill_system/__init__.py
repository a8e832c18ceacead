"""Distributed distillation training: teachers, students, pruning and quantization from one command."""

__version__ = "0.1.0"
