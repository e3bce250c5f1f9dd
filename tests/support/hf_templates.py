"""Chat templates as models of today bring them, in our own words: tools, thinking and ``generation`` blocks.

Each is a body behind our front matter: how a family writes its turns, not any model's own file.
"""

from __future__ import annotations

_CHATML_HEAD = """{#---
description: test
kind: chat
eos_token: "<|im_end|>"
answer_end: "<|im_end|>"
control: ["<|im_start|>", "<think>", "</think>"]
---#}
"""

HERMES = (
    _CHATML_HEAD
    + """{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
<|im_start|>assistant
{% generation %}
{%- if m.reasoning_content -%}
{{ '<think>' + m.reasoning_content + '</think>\\n' }}
{%- endif -%}
{{- m.content if m.content is string else '' -}}
{%- if m.tool_calls -%}
{%- for call in m.tool_calls -%}
{%- set f = call.function if call.function is defined else call -%}
{{- '\\n<tool_call>' -}}
{{- {'name': f.name, 'arguments': f.arguments} | tojson -}}
{{- '</tool_call>' -}}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>' -}}
{%- endgeneration -%}
{{- '\\n' -}}
{%- else -%}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
)
"""Everything that an assistant writes in one block, its end included."""

QWEN = (
    _CHATML_HEAD
    + """{%- set ns = namespace(last_question=0) -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{%- set ns.last_question = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for m in messages -%}
{%- if m.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' -}}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
{%- elif m.role == 'assistant' -%}
{{- '<|im_start|>assistant\\n' -}}
{%- generation -%}
{%- if loop.index0 > ns.last_question and m.reasoning_content is defined and m.reasoning_content -%}
{{- '<think>\\n' + m.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' -}}
{%- endif -%}
{{- m.content -}}
{%- if m.tool_calls -%}
{%- for call in m.tool_calls -%}
{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' -}}
{%- if call.function.arguments is string -%}{{- call.function.arguments -}}
{%- else -%}{{- call.function.arguments | tojson -}}{%- endif -%}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{%- endif -%}
{%- endgeneration -%}
{{- '<|im_end|>\\n' -}}
{%- else -%}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
)
"""Earlier thoughts are forgotten, the end of a turn stands behind its block, results share a turn."""

CHANNELS = """{#---
description: test
kind: chat
eos_token: "<|return|>"
answer_end: "<|return|>"
control: ["<|start|>", "<|channel|>", "<|message|>", "<|end|>"]
---#}
{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
{{- '<|start|>assistant' -}}
{%- generation -%}
{%- if 'thinking' in m -%}{{- '<|channel|>analysis<|message|>' + m.thinking + '<|end|>' -}}{%- endif -%}
{%- if m.get('tool_calls') -%}
{{- '<|channel|>commentary to=' + m.tool_calls[0]['function']['name'] + '<|message|>' -}}
{{- m.tool_calls[0]['function']['arguments'] | tojson -}}
{%- else -%}
{{- '<|channel|>final<|message|>' + m.content -}}
{%- endif -%}
{{- '<|return|>' -}}
{%- endgeneration -%}
{%- else -%}
{{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}
"""
"""Channels for thoughts, calls and answers; one call a turn."""

GEMMA = """{#---
description: test
kind: chat
bos_token: "<bos>"
eos_token: "<eos>"
answer_end: "<end_of_turn>"
control: ["<start_of_turn>"]
---#}
{{- bos_token -}}
{%- for m in messages -%}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' -}}
{%- if m.role == 'assistant' -%}
{%- generation -%}
{{- m.content | trim -}}
{%- for call in m.tool_calls or [] -%}
{{- '```tool_code\\n' + call.function.name + '(' -}}
{%- for key, value in call.function.arguments.items() -%}
{{- key + '=' + (value | tojson) -}}{%- if not loop.last -%}{{- ', ' -}}{%- endif -%}
{%- endfor -%}
{{- ')\\n```' -}}
{%- endfor -%}
{{- '<end_of_turn>' -}}
{%- endgeneration -%}
{{- '\\n' -}}
{%- else -%}
{{- m.content | trim -}}{{- '<end_of_turn>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}
"""
"""Calls as code, argument by argument; nothing of thinking."""

ENDLESS = HERMES.replace("{{- '<|im_end|>' -}}\n{%- endgeneration -%}", "{%- endgeneration -%}\n{{- ' <|im_end|>' -}}")
"""A template with a mistake: the end of a turn is neither in its block nor directly behind it."""

TEMPLATES = {"hermes": HERMES, "qwen": QWEN, "channels": CHANNELS, "gemma": GEMMA}
