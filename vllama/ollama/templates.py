"""Templates in the two languages that models come with: Jinja, and Ollama's Go templates (contract §2.3)."""

from __future__ import annotations

from vllama.errors import RequestError, TemplateError
from vllama.ollama.gotemplate import is_go_template, to_jinja, variables


def in_jinja(template: str) -> str:
    """A template in Jinja, whatever it was written in; "" stays "". Raises TemplateError."""
    return to_jinja(template) if template and is_go_template(template) else template


def check_request_template(template: str) -> None:
    """Raise TemplateError where the template of a request cannot be used, RequestError where it is Jinja.

    Ollama's clients send Go's language. Jinja from strangers could keep a worker busy for hours, and is not needed.
    """
    if template and not is_go_template(template):
        raise RequestError(
            "a template in a request has to be a Go template, as Ollama's are; for one in Jinja create a model with it"
        )
    in_jinja(template)


def check_template(template: str) -> None:
    """Raise RequestError, in the words of `/api/create`, where the template cannot be rendered (contract §1.9)."""
    if not template:
        return
    try:
        _compile(in_jinja(template))
    except RequestError as error:
        raise RequestError(f"template error: {error}") from None


def _compile(jinja: str) -> None:
    """Compile as transformers does, and run nothing."""
    from jinja2 import TemplateSyntaxError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tag with which templates mark what the model has written."""

        tags = {"generation"}  # noqa: RUF012 - the way of Jinja

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(extensions=[Generation, loopcontrols])
    try:
        environment.compile(jinja, raw=True)
    except TemplateSyntaxError as error:
        raise RequestError(f"{error.message} (line {error.lineno})") from None
    except RecursionError:
        raise RequestError("it is nested too deeply") from None


def fills_gaps(template: str) -> bool:
    """Whether a template says how to ask for the text before a suffix; those in Jinja never do."""
    if not is_go_template(template):
        return False
    try:
        return "Suffix" in variables(template)
    except TemplateError:
        return False
