"""How the parts of weight formats are found: algorithms that several formats or options share. One file, one idea.

All of them make small what a layer's output loses, tr(E G E^T): E is the error of the weight matrix and G the second
moments of the layer's inputs (graphc.moments).
"""
