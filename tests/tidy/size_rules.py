# SPDX-License-Identifier: Apache-2.0
"""Sizes: a file of at most 600 lines, a function of at most 70 (from its signature to its last brace)."""

import ast
import re

from tree import CPP, Breach, Tree

FILE_LINES = 600
FUNCTION_LINES = 70

# Comments, strings and characters: everything in which a brace means nothing.
BLANKED = re.compile(
    r'//[^\n]*|/\*.*?\*/|R"(?P<mark>[^(\s]*)\(.*?\)(?P=mark)"'
    r"|\"(?:\\.|[^\"\\\n])*\"|(?<![0-9A-Fa-f])'(?:\\.[^'\n]*|[^'\\\n])'"
    r"|^[ \t]*#(?:\\\n|[^\n])*", re.DOTALL | re.MULTILINE)
SCOPE = re.compile(r"\b(namespace|class|struct|union|enum|extern|mod|impl|trait)\b")


def blank(text: str) -> str:
    """The text with the same lines, but without comments, literals and preprocessor lines."""
    return BLANKED.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)


def function_name(signature: str) -> str:
    if test := re.match(r"\s*(?:TYPED_)?TEST(?:_[FP])?\s*\(\s*(\w+)\s*,\s*(\w+)", signature):
        return f"{test[1]}.{test[2]}"
    names = re.findall(r"([\w:~]+|operator\s*\S+)\s*\(", signature)
    return names[0] if names else "?"


def braced_functions(text: str) -> list[tuple[str, int, int]]:
    """(name, first line, last line) of the functions of C++ or Rust text.

    A brace opens a function when a parameter list precedes it and all braces around it open scopes
    (namespaces, types); lambdas and blocks inside a function count as its lines.
    """
    functions, stack, start, line, code = [], [], 0, 1, blank(text)
    for at, char in enumerate(code):
        if char == "\n":
            line += 1
        elif char == ";" and all(kind == "scope" for kind, _, _ in stack):
            start = at + 1
        elif char == "{":
            statement = code[start:at]
            parens = re.sub(r"<[^<>()]*>", "", statement)
            kind = "block"
            if all(outer == "scope" for outer, _, _ in stack):
                before_parens = parens.split("(")[0]
                if "(" in parens and not re.search(r"[^=!<>]=\s*$", statement):
                    kind = "scope" if SCOPE.search(before_parens) and ")" not in parens[
                        parens.rfind("("):] else "function"
                    if re.search(r"\b(class|struct|union)\b[^()]*(\([^()]*\)\s*)?[\w:\s,<>]*$",
                                 parens) and re.match(
                                     r"\s*(template\s*<.*>\s*)?(class|struct|union)\b", parens):
                        kind = "scope"
                elif SCOPE.search(parens):
                    kind = "scope"
            lead = len(statement) - len(statement.lstrip())
            stack.append((kind, function_name(statement), line - statement[lead:].count("\n")))
            start = at + 1
        elif char == "}" and stack:
            kind, name, first = stack.pop()
            if kind == "function":
                functions.append((name, first, line))
            start = at + 1
    return functions


def python_functions(text: str) -> list[tuple[str, int, int]]:
    return [(node.name, node.lineno, node.end_lineno) for node in ast.walk(ast.parse(text))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def check_files(tree: Tree) -> list[Breach]:
    return [Breach(name, FILE_LINES, f"has {len(tree.lines(name))} lines, at most {FILE_LINES}")
            for name in tree.sources() + tree.scripts()
            if len(tree.lines(name)) > FILE_LINES]


def check_functions(tree: Tree) -> list[Breach]:
    breaches = []
    for name in tree.sources(CPP + (".rs", ".py")):
        read = python_functions if name.endswith(".py") else braced_functions
        for function, first, last in read(tree.text(name)):
            if last - first + 1 > FUNCTION_LINES:
                breaches.append(Breach(name, first, f"{function} has {last - first + 1} lines, "
                                       f"at most {FUNCTION_LINES}", function))
    return breaches
