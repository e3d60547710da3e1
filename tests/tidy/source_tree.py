"""Reads the checkout for the tidy rules: which files are ours, what they include, how long their functions are."""

import os
import re

CODE = ('.h', '.cc', '.cu', '.cuh')
IGNORED_FOLDERS = {'.git', '.deps', '.cache', '.carry', 'build', 'out', 'install', 'shared', '__pycache__'}


def files(root):
    """Yields the paths, relative to root, of all files that are ours (nothing built, nothing fetched)."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in IGNORED_FOLDERS and not f.startswith('build-'))
        for name in sorted(names):
            yield os.path.relpath(os.path.join(folder, name), root)


def code_files(root):
    return [path for path in files(root) if path.endswith(CODE)]


def read(root, path):
    with open(os.path.join(root, path), encoding='utf-8') as file:
        return file.read()


INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.M)


def includes(text):
    """The included names, as written, with the line of each."""
    return [(match.group(2), text.count('\n', 0, match.start(2)) + 1) for match in INCLUDE.finditer(text)]


# One alternative per thing that may hide a brace or a banned word; a raw string ends with its own delimiter.
HIDDEN = re.compile(
    r'R"(?P<mark>[^()\s]*)\(.*?\)(?P=mark)"|//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.S)


def without_comments_and_strings(text):
    """The same text with comments and literals emptied; line numbers stay."""
    # A digit separator (1'000) is no character literal.
    text = re.sub(r"(?<=[0-9a-fA-F])'(?=[0-9a-fA-F])", '_', text)
    return HIDDEN.sub(lambda match: '\n' * match.group().count('\n'), text)


CONTAINER = re.compile(r'\b(namespace|class|struct|union|enum)\b|\bextern\s*$')


def functions(text):
    """(first line, number of lines, signature) of each function defined in the text, lambdas not counted."""
    text = re.sub(r'^[ \t]*#(?:\\\n|[^\n])*', '', without_comments_and_strings(text), flags=re.M)
    found, stack, start = [], [], 0
    for position, char in enumerate(text):
        if char in ';{}':
            if char == '{':
                head = text[start:position]
                outside = all(kind == 'container' for kind, _, _ in stack)
                stack.append((_block_kind(head, outside), start + len(head) - len(head.lstrip()), head.strip()))
            elif char == '}' and stack:
                kind, begin, head = stack.pop()
                if kind == 'function':
                    first = text.count('\n', 0, begin) + 1
                    found.append((first, text.count('\n', begin, position) + 1, ' '.join(head.split())))
            start = position + 1
    return found


def _block_kind(head, outside):
    if not outside:
        return 'inner'
    signature = re.sub(r'^(\s*(public|private|protected)\s*:)*\s*(template\s*<.*?>\s*)?', '', head, flags=re.S)
    if '(' not in signature and CONTAINER.search(signature):
        return 'container'
    # An attribute macro before a class name has parentheses too: `class ABSL_LOCKABLE("x") Name {`.
    if re.match(r'(class|struct|union|enum|namespace)\b', signature):
        return 'container'
    return 'function' if ')' in signature else 'inner'
