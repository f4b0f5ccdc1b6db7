"""s1jax: supervised fine-tuning and budget-forced sampling of reasoning models in JAX and Flax."""

__version__ = "0.1.0"
