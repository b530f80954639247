"""What runs an artifact: C sources (graphc.h, graphc.c, model.h, model.c, runner.c) and their Python drivers.

model.c is linked into each artifact's code; graphc.c loads artifacts in C programs; runner.c is run under emulators.
"""
