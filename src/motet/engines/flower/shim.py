"""Flower's ClientApp at a site: hands each question to the resident agent, and its reply back.

Flower starts a process for every message, so that this one must start fast: no torch.
"""

from __future__ import annotations

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from motet.agent.client import exchange
from motet.engines.flower.records import (
    ACTION,
    RecordError,
    question_frame,
    reply,
    undelivered,
)

# The key of a SuperNode's --node-config that says where the agent listens.
SOCKET = "socket"

app = ClientApp()


@app.query(ACTION)
def ask(message: Message, context: Context) -> Message:
    """The agent's reply to a question."""
    return Message(answer(message.content, context.node_config.get(SOCKET)), reply_to=message)


def answer(records: RecordDict, socket: object) -> RecordDict:
    """The records of the reply; where nobody can be asked, why, and what to do at the site."""
    if not isinstance(socket, str):
        return undelivered(
            "the SuperNode does not know where the agent listens; start it with "
            f"--node-config '{SOCKET}=\"/path/to/agent.sock\"'"
        )
    try:
        return reply(exchange(socket, question_frame(records)))
    except RecordError as error:
        return undelivered(str(error))
    except ValueError as error:
        return undelivered(f"{SOCKET}: {error}")
    except (FileNotFoundError, ConnectionRefusedError):
        return undelivered(
            f"no agent listens at {socket}; start it there: motet site --config site.yaml"
        )
    except OSError as error:
        return undelivered(f"the agent at {socket} broke off: {error}")
