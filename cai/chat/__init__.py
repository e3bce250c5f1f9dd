"""Chat templates: messages in, the exact text a model reads out."""

from __future__ import annotations

from cai.chat.messages import ROLES, Message, Span, ToolCall
from cai.chat.prompt import PromptTemplate
from cai.chat.template import ChatTemplate, read_text
from cai.chat.template_file import Format, TurnError, description_of, is_chat

__all__ = [
    "ROLES",
    "ChatTemplate",
    "Format",
    "Message",
    "PromptTemplate",
    "Span",
    "ToolCall",
    "TurnError",
    "description_of",
    "is_chat",
    "read_text",
]
