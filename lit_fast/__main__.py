"""``python -m lit_fast`` is ``lit-fast``."""

from lit_fast.cli import main

main()
