"""The compiler's options as users have them, for one program (see conftest.py).

Compiled quickly, a program that does much work takes several times as long to run, and
two programs may round a product and a sum differently.
"""

OPTIMISED = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
}
