"""Finding where the model's reply begins in a template for one round of prompt and response."""

from __future__ import annotations

from vllama.ollama.gotemplate.nodes import Action, Branch, Chain, Field, Node, Nodes, Operand, Pipe, Range, Root


def up_to_the_reply(nodes: Nodes) -> Nodes:
    """Return the nodes up to the first one that prints `.Response`."""
    return _cut(nodes)[0]


def _cut(nodes: Nodes) -> tuple[Nodes, bool]:
    """Return the nodes that are kept, and whether one of them prints the reply."""
    kept: list[Node] = []
    for node in nodes:
        stays, found = _cut_node(node)
        kept.append(stays)
        if found:
            return tuple(kept), True
    return tuple(kept), False


def _cut_node(node: Node) -> tuple[Node, bool]:
    match node:
        case Action(pipe):
            return node, _prints_reply(pipe)
        case Range(pipe, body, otherwise):
            body, found = _cut(body)
            if found:
                return Range(pipe, body, ()), True
            otherwise, found = _cut(otherwise)
            return Range(pipe, body, otherwise), found
        case Branch(keyword, arms, otherwise):
            kept = []
            for pipe, arm in arms:
                body, found = _cut(arm)
                kept.append((pipe, body))
                if found:
                    return Branch(keyword, tuple(kept), ()), True
            otherwise, found = _cut(otherwise)
            return Branch(keyword, arms, otherwise), found
    return node, False


def _prints_reply(pipe: Pipe) -> bool:
    return any(_is_reply(operand) for command in pipe.commands for operand in command)


def _is_reply(operand: Operand) -> bool:
    match operand:
        case Field(names) | Root(names):
            return "Response" in names
        case Chain(pipe):
            return _prints_reply(pipe)
        case Pipe():
            return _prints_reply(operand)
    return False
