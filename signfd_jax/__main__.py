"""`python -m signfd_jax` is the command `signfd`."""

import sys

from signfd_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
