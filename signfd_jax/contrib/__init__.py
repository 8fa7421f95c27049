"""The library inside other frameworks, each of which is an extra of its own.

`signfd_jax.contrib.flower` is for Flower: `pip install "signfd-jax[flower]"`. Nothing
here is imported before it is asked for.
"""

__all__ = []
