"""Joins C++ files for builds in which a file's time is what its headers instantiate (sanitizers: a third of the time).

join_sources.py FOLDER NAME FILE...  writes FOLDER/NAME_0.cpp, ... that include the files; prints what is to be compiled.
Files that define a name of their own (in an anonymous namespace or static) which another one has are kept apart, and so
are files with macros, and files that open another namespace: a joined file means what its parts mean.
"""
import re
import sys
from pathlib import Path

ROOT = Path(__file__).absolute().parent.parent
MOST_LINES = 2500  # of a joined file: memory and two cores with work to the end ask for no larger ones
TYPE = re.compile(r"(?:template <.*> )?(?:struct|union|enum class|enum|class) (\w+)")
ALIAS = re.compile(r"^(?:namespace|using) (?!namespace)(?:[^=]*::)?(\w+)(?: = |;)")


def own_names(text, file):
    """Names at the left edge inside `namespace {`, or static, and suites of tests, each with what it means: the line of an
    alias, the namespaces that are opened, else the file. None where the file has macros."""
    if re.search(r"^#\s*(define|undef)", text, re.M):
        return None
    names, inside = {"using namespace": re.findall(r"^using namespace (.*);", text, re.M)}, False
    for line in text.splitlines():
        if line.startswith("namespace {"):
            inside = True
        elif line.startswith("}  // namespace") and not line.startswith("}  // namespace "):
            inside = False
        elif found := re.match(r"TEST(?:_F|_P)?\((\w+)", line) or (inside and TYPE.match(line)):
            names[found[1]] = file
        elif inside and line.startswith(("using ", "namespace ")):
            names |= {alias: line for alias in ALIAS.findall(line)}
        elif (inside or line.startswith("static ")) and re.match(r"(?!template)\w", line):
            line = re.sub(r"<[^<>]*>", "", line)
            head = re.match(r"[^=({]*\w\(", line)  # a function, or a variable with its value in parentheses
            found = re.findall(r"\w+$", head[0][:-1]) if head else re.findall(r"([a-zA-Z_]\w*)(?:\[\w*\])* *(?=[={;,]|$)", line)
            names.update(dict.fromkeys(found, file))
    return names


def main(folder, name, files):
    folder.mkdir(parents=True, exist_ok=True)
    groups, alone = [], []
    for file in files:
        text = file.read_text(encoding="utf-8")
        names, lines = own_names(text, file), text.count("\n")
        if names is None or not file.is_relative_to(ROOT):
            alone.append(file)
            continue
        for group in groups:
            taken = group["names"]
            if group["lines"] + lines <= MOST_LINES and all(taken.get(n, what) == what for n, what in names.items()):
                break
        else:
            groups.append(group := {"lines": 0, "names": {}, "text": ""})
        group["lines"] += lines
        group["names"] |= names
        group["text"] += f'#include "{file.relative_to(ROOT)}"\n'
    for i, group in enumerate(groups):
        path = folder / f"{name}_{i}.cpp"
        if not path.exists() or path.read_text(encoding="utf-8") != group["text"]:
            path.write_text(group["text"], encoding="utf-8")
        print(path)
    print(*alone, sep="\n")


main(Path(sys.argv[1]), sys.argv[2], [Path(f) for f in sys.argv[3:]])
