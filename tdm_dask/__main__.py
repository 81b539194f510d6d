"""`python -m tdm_dask` is the command `tdm`."""

from .cli import main

if __name__ == "__main__":
    main()
