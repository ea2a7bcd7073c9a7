"""Shows the `>>>` examples of docstrings as code: Markdown takes them for quotations."""

import griffe


class DoctestBlocks(griffe.Extension):
    """Fences every unindented run of lines that begins with `>>>`, and its `Example:` heading."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        """Rewrites the docstring of one object."""
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(docstring: str) -> str:
    """`docstring` with its examples between fences; a blank line ends an example."""
    lines, in_example = [], False
    for line in docstring.splitlines():
        if line.startswith(">>>") and not in_example:
            lines += ["", "```pycon"]
            in_example = True
        elif in_example and not line.strip():
            lines.append("```")
            in_example = False
        lines.append("**Example:**" if line == "Example:" else line)
    return "\n".join([*lines, "```"] if in_example else lines)
