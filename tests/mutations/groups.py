"""Mutations of message groups: of their selection, and of what keeps them."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

OPTION: Final = "tests/definition/test_groups.py"
SENDING: Final = "tests/sending/test_groups.py"

MUTATIONS: Final = (
    Mutation(
        "a message of SQS has no group",
        "backends/entries.py",
        '{"MessageGroupId": self.job.group}',
        "{}",
        f"{SENDING}::TestSqs",
    ),
    Mutation(
        "a group has spaces",
        "wire/attributes.py",
        '_GROUP: Final = "[!-~]{1,128}"',
        '_GROUP: Final = "[ -~]{1,128}"',
        OPTION,
    ),
    Mutation(
        "a retry loses its group",
        "jobs.py",
        "            flow=self.flow,\n            group=self.group,\n",
        "            flow=self.flow,\n",
        f"{SENDING}::TestTasks",
    ),
    Mutation(
        "the outbox loses the group",
        "jobs.py",
        "            own[GROUP_ATTRIBUTE] = self.group\n",
        "            pass\n",
        f"{SENDING}::TestOutbox",
    ),
    Mutation(
        "the group of another program is not read",
        "wire/deliveries.py",
        '(self.system.get("MessageGroupId"), self.texts.get(GROUP_ATTRIBUTE))',
        "(self.texts.get(GROUP_ATTRIBUTE),)",
        SENDING,
    ),
    Mutation(
        "a wrong group keeps a follower from running",
        "definition/groups.py",
        "    except Exception as error:\n",
        "    except ZeroDivisionError as error:\n",
        f"{SENDING}::TestTasks",
    ),
    Mutation(
        "a replaced call keeps the group of its former arguments",
        "backends/outbox.py",
        "if name != GROUP_ATTRIBUTE}\n        group = {} if",
        "}\n        group = {} if True or",
        f"{SENDING}::TestOutbox",
    ),
    Mutation(
        "a sensitive parameter is a group",
        "definition/keys.py",
        '    "group": "SQS shows the group of a message",\n',
        "",
        OPTION,
    ),
    Mutation(
        "a lost task loses its group",
        "operations/reaping.py",
        "        group=group_if_valid(task, _message(lost)),\n",
        "",
        f"{SENDING}::TestTasks",
    ),
    Mutation(
        "a scheduled run has no group",
        "operations/schedules.py",
        "            group=group_if_valid(self.task, message),\n",
        "",
        f"{SENDING}::TestTasks",
    ),
    Mutation(
        "a message from the dead letter queue loses its group",
        "operations/dead_letters.py",
        '        entry["MessageGroupId"] = group\n',
        "        pass\n",
        f"{SENDING}::TestSqs",
    ),
)
