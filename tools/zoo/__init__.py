"""The model zoo: reference networks in plain PyTorch, with the weights, data and baselines of $GRAPHC_DATA.

One file per family defines the network as a user would write it; `data` reads the files, `benchmarks` holds the
evaluation protocols, and `catalog.MODELS` ties them together. `python -m graphc.tools.zoo` reproduces the baselines.
"""
