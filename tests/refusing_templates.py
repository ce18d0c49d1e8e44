"""Chat templates that raise for the reasons for which public models' templates raise, each named after its reason."""

from __future__ import annotations

_TURNS = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }}({{ c.function.arguments | tojson }})]{% endfor %}"
    "{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
_CHECK_TURNS = (
    "{% set ns = namespace(turn=0) %}{% for m in rest %}"
    "{% if not (m.role == 'tool' or m.tool_calls) %}"
    "{% if (m.role == 'user') != (ns.turn % 2 == 0) %}{{ raise_exception('Roles must alternate.') }}{% endif %}"
    "{% set ns.turn = ns.turn + 1 %}{% endif %}{% endfor %}"
)

REFUSING = {
    "strictly alternating, no system (Gemma 2)": (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "<{{ m.role }}>{{ m.content | trim }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    ),
    "alternating after the system message, ids of nine (Mistral)": (
        "{% set rest = messages[1:] if messages[0].role == 'system' else messages %}"
        + _CHECK_TURNS
        + "{% for m in messages %}"
        "{% for c in m.tool_calls or [] %}{% if c.id is not defined or c.id | length != 9 %}"
        "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}{% endfor %}"
        "{% if m.role == 'tool' and (m.tool_call_id is not defined or m.tool_call_id | length != 9) %}"
        "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}"
        "{% if m.role not in ['system', 'user', 'assistant', 'tool'] %}{{ raise_exception('Unknown role') }}{% endif %}"
        "{% endfor %}" + _TURNS
    ),
    "no empty answers (Ministral)": (
        "{% set rest = messages[1:] if messages[0].role == 'system' else messages %}"
        + _CHECK_TURNS
        + "{% for m in messages %}{% if m.role == 'assistant' and not m.content and not m.tool_calls %}"
        "{{ raise_exception('Assistant message must have content or a list of tool calls.') }}{% endif %}{% endfor %}"
        + _TURNS
    ),
    "system first, and a user (Qwen 3.5)": (
        "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
        "{{ raise_exception('System message must be at the beginning.') }}{% endif %}{% endfor %}"
        "{% if not messages | selectattr('role', 'equalto', 'user') | list %}"
        "{{ raise_exception('No user query found in messages.') }}{% endif %}" + _TURNS
    ),
    "loops over tools that are None (Hermes, Command R)": (
        "{% for t in tools %}{{ t.function.name }} {% endfor %}" + _TURNS
    ),
    "reads the parts of each tool (functionary, gpt-oss, Seed)": (
        "{% for t in tools or [] %}{{ t.function.name + ': ' + t.function.description }}"
        "{{ t.function.parameters.properties.items() | list }}{% endfor %}" + _TURNS
    ),
    "adds contents to texts (Granite, Qwen 3)": _TURNS.replace("{{ m.content }}", "{{ '' + m.content }}"),
    "adds arguments to texts (DeepSeek, functionary)": _TURNS.replace(
        "{{ c.function.arguments | tojson }}", "{{ '' + c.function.arguments }}"
    ),
    "one call at once (Llama 3)": (
        "{% for m in messages %}{% if m.tool_calls and m.tool_calls | length != 1 %}"
        "{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}{% endfor %}" + _TURNS
    ),
    "calls must have ids (Solar, Apriel)": _TURNS.replace("[{{ c.f", "[{{ c.id + c.f"),
    "a result follows its call (MiniMax)": (
        "{% set ns = namespace(calls=false) %}{% for m in messages %}"
        "{% if m.role == 'tool' and not ns.calls %}{{ raise_exception('Result without a call') }}{% endif %}"
        "{% if m.tool_calls %}{% set ns.calls = true %}{% endif %}{% endfor %}" + _TURNS
    ),
    "known roles only (Apertus)": (
        "{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant', 'tool'] %}"
        "{{ raise_exception('Invalid message role') }}{% endif %}{% endfor %}" + _TURNS
    ),
    "variables of its own (Firefunction)": "{{ 'Functions: ' + functions + ' Today: ' + datetime }}" + _TURNS,
    "changes lists (Kimi K2)": (
        "{% set ns = namespace(ids=[]) %}{% for m in messages %}{% for c in m.tool_calls or [] %}"
        "{% set _ = ns.ids.append(c.function.name) %}{% endfor %}"
        "{% if m.role == 'tool' and ns.ids %}{%- set first = ns.ids.pop(0) -%}{{ first }}{% endif %}{% endfor %}"
        + _TURNS
    ),
    "writes a generator as JSON": "{{ (tools or []) | map(attribute='function') | tojson(indent=2) }}" + _TURNS,
}
