"""Training of compressed networks: recovery by distillation, trained codebooks, and sparsifying penalties."""
