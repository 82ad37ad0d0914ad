"""``python -m llmrec`` is the ``llmrec`` command."""

from llmrec.cli import main

if __name__ == "__main__":
    main()
