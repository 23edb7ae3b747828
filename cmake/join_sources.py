"""Joins C++ files for builds in which a file's time is what its headers instantiate (sanitizers: a third of the time).

join_sources.py FOLDER NAME FILE...  writes FOLDER/NAME_0.cpp, ... that include the files; prints what is to be compiled.
Files that define a name of their own (in an anonymous namespace or static) which another one has are kept apart, and so
are files with macros: a joined file means what its parts mean.
"""
import re
import sys
from pathlib import Path

ROOT = Path(__file__).absolute().parent.parent
MOST_LINES = 1500  # of a joined file: memory and two cores with work to the end ask for no larger ones
DECLARED = re.compile(r"(\w+)\s*(?=\(|=|\{|\[|;|<[^;{]*>\s*[({]|$)")


def own_names(text):
    """Names at the left edge inside `namespace {`, or static; None where the file has macros or opens a namespace."""
    if re.search(r"^#\s*(define|undef)|^using namespace", text, re.M):
        return None
    names, inside = set(), False
    for line in text.splitlines():
        if test := re.match(r"TEST(?:_F|_P)?\((\w+)", line):
            names.add(test[1])  # a suite
        elif line.startswith("namespace {"):
            inside = True
        elif line.startswith("}  // namespace") and not line.startswith("}  // namespace "):
            inside = False
        elif (inside or line.startswith("static ")) and re.match(r"\w", line):
            head = line.split("(")[0] if re.match(r"[^=]*\(", line) else line
            names.update(re.findall(r"\w+$", head.rstrip()) if head != line else DECLARED.findall(line))
            names.update(re.findall(r"^(?:struct|class|enum|enum class|union|using) (\w+)", line))
    return names


def main(folder, name, files):
    folder.mkdir(parents=True, exist_ok=True)
    groups, alone = [], []
    for file in files:
        text = file.read_text(encoding="utf-8")
        names, lines = own_names(text), text.count("\n")
        if names is None or not file.is_relative_to(ROOT):
            alone.append(file)
            continue
        for group in groups:
            if group["lines"] + lines <= MOST_LINES and not group["names"] & names:
                break
        else:
            groups.append(group := {"lines": 0, "names": set(), "text": ""})
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
