"""Tools: programs about IR dumps and artifacts, reached as `graphc <tool>`."""

if __name__ != "graphc.tools":
    raise ImportError("import graphc.tools, not tools")
