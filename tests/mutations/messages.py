"""Mutations of the reading, quoting and storing of messages."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

SENSITIVE: Final = "tests/faults/test_sensitive.py"
CANARIES: Final = "tests/faults/test_canaries.py"
INPUT: Final = "tests/faults/test_bad_input.py"
ODD: Final = "tests/faults/test_odd_results_and_errors.py"
MANY: Final = "tests/wire/test_many_attributes.py"

MUTATIONS: Final = (
    Mutation(
        "sensitive arguments are stored in the record",
        "jobs.py",
        "        return masked(self.message.kwargs, self.task.sensitive)\n",
        "        return self.message.kwargs\n",
        SENSITIVE,
    ),
    Mutation(
        "a traceback quotes sensitive arguments",
        "jobs.py",
        "traceback_text(error, hiding=self._hidden_values())",
        "traceback_text(error)",
        SENSITIVE,
    ),
    Mutation(
        "a failure of a sensitive task is logged with its error",
        "jobs.py",
        "    if run.task.sensitive:\n        # The traceback",
        "    if run.task is None:\n        # The traceback",
        SENSITIVE,
    ),
    Mutation(
        "plugin errors are logged with the error of a sensitive task",
        "plugins.py",
        "    if run is None:\n",
        "    if run is None or run:\n",
        SENSITIVE,
    ),
    Mutation(
        "truncated pieces of a sensitive argument remain visible",
        "recording/tracebacks.py",
        "return needles.without_pieces(storable(needles.scrubbed(text)))",
        "return storable(needles.scrubbed(text))",
        SENSITIVE,
    ),
    Mutation("an argument of asterisks is masked again", "recording/masking.py", ' and form.strip("*")', "", SENSITIVE),
    Mutation(
        "the number of masked values is unlimited",
        "recording/masking.py",
        "        if count > _MAX_VALUES or _clock()",
        "        if _clock()",
        SENSITIVE,
    ),
    Mutation(
        "errors describe the inside of a sensitive argument",
        "definition/problems.py",
        "    if path and path[0] in hidden:\n",
        "    if not path and path:\n",
        SENSITIVE,
    ),
    Mutation(
        "an error contains a path inside a sensitive argument",
        "definition/converting.py",
        '        if name in self.sensitive:\n            return f"Argument {name} of {self.name} would arrive',
        '        if not name:\n            return f"Argument {name} of {self.name} would arrive',
        SENSITIVE,
    ),
    Mutation(
        "the repr of a message contains its arguments",
        "messages.py",
        "Field(default_factory=dict, repr=False)",
        "Field(default_factory=dict)",
        SENSITIVE,
    ),
    Mutation(
        "pydantic errors quote a payload",
        "messages.py",
        '    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)\n\n    message:',
        '    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)\n\n    message:',
        SENSITIVE,
    ),
    Mutation(
        "the repr of a delivery contains its body",
        "wire/deliveries.py",
        "    record: Mapping[str, Any] = field(repr=False)\n",
        "    record: Mapping[str, Any]\n",
        SENSITIVE,
    ),
    Mutation(
        "the cause of InvalidMessage contains the arguments",
        "definition/converting.py",
        '            problems = self._problems(error)\n        raise InvalidMessage(f"The arguments in the message do not match {self.name}: {problems}")\n',
        '            problems = self._problems(error)\n            raise InvalidMessage(f"The arguments in the message do not match {self.name}: {problems}") from error\n',
        CANARIES,
    ),
    Mutation(
        "a log line that cannot be written ends the batch",
        "logging.py",
        "            super().log(level, msg, *args, **kwargs)\n        except Exception:\n",
        "            super().log(level, msg, *args, **kwargs)\n        except ZeroDivisionError:\n",
        "tests/project/test_log_lines.py::TestLocation",
    ),
    Mutation(
        "an error in the Lambda context's clock ends the batch",
        "handler.py",
        "    except Exception:  # a substitute for Lambda's context",
        "    except ZeroDivisionError:  # a substitute for Lambda's context",
        INPUT + "::test_context_with_an_odd_clock_runs_tasks",
    ),
    Mutation(
        "a remaining time that is not finite is accepted",
        "handler.py",
        "return time.monotonic() + seconds if math.isfinite(seconds) else None",
        "return time.monotonic() + seconds",
        INPUT + "::test_context_with_an_odd_clock_runs_tasks",
    ),
    Mutation(
        "an id with a lone surrogate raises an error",
        "wire/ids.py",
        'raw.encode("utf-8", "backslashreplace")',
        'raw.encode("utf-8")',
        INPUT + "::test_unencodable_log_line_is_escaped",
    ),
    Mutation(
        "the nesting limit of a message is ten times as high",
        "recording/storable.py",
        "        too_deep = depth(value) > MAX_DEPTH\n",
        "        too_deep = depth(value) > 10 * MAX_DEPTH\n",
        INPUT + "::test_body_of_any_depth_is_run_or_kept",
    ),
    Mutation(
        "the number of problems in an error is unlimited",
        "definition/problems.py",
        "for problem in problems[:_SAID_PROBLEMS]]",
        "for problem in problems]",
        INPUT + "::test_body_with_many_errors_logs_one_short_line",
    ),
    Mutation(
        "field names in errors are not shortened",
        "definition/problems.py",
        '".".join(map(shown, path)) or whole',
        '".".join(map(str, path)) or whole',
        INPUT + "::test_unknown_field_makes_a_message_malformed",
    ),
    Mutation(
        "an event that is not a mapping raises an error",
        "wire/deliveries.py",
        'event.get("Records") if isinstance(event, Mapping) else None',
        'event.get("Records")',
        INPUT + "::test_invalid_event_is_refused",
    ),
    Mutation(
        "the number of digits in a receive count is unlimited",
        "wire/deliveries.py",
        " and len(text) <= 15",
        "",
        INPUT + "::test_any_receive_count_is_accepted",
    ),
    Mutation(
        "an unexpected error in serializing a result is not handled",
        "results.py",
        "    except Exception as error:  # a property",
        "    except (TypeError, ValueError, RecursionError) as error:  # a property",
        ODD,
    ),
    Mutation(
        "an error that cannot be printed is not recorded",
        "recording/tracebacks.py",
        "    except Exception as second:\n",
        "    except ZeroDivisionError as second:\n",
        ODD,
    ),
    Mutation(
        "NUL and lone surrogates reach the database",
        "recording/storable.py",
        """return text.replace("\\x00", r"\\x00").encode("utf-8", "backslashreplace").decode("utf-8")""",
        "return text",
        ODD,
    ),
    Mutation(
        "too many attributes are not packed",
        "wire/attributes.py",
        "    if len(attributes) <= most:\n",
        "    if True:\n",
        MANY,
    ),
    Mutation(
        "few attributes are packed, too",
        "wire/attributes.py",
        "    if len(attributes) <= most:\n",
        "    if False:\n",
        MANY,
    ),
    Mutation(
        "a worker overlooks packed attributes",
        "wire/deliveries.py",
        'texts = unpacked(_text_attributes(record.get("messageAttributes")))',
        'texts = _text_attributes(record.get("messageAttributes"))',
        MANY,
    ),
    Mutation(
        "the signature is that of the packed attributes",
        "backends/entries.py",
        "signed(job.body, whole, keys[0])",
        "signed(job.body, packed(whole, MAX_ATTRIBUTES), keys[0])",
        MANY,
    ),
    Mutation(
        "a message whose packed attributes cannot be read runs without them",
        "wire/deliveries.py",
        "if MORE_ATTRIBUTE in self.texts:",
        "if False:",
        MANY,
    ),
    Mutation(
        "a packed attribute replaces the message's own",
        "wire/attributes.py",
        "if value and name != MORE_ATTRIBUTE}, **own}",
        "if value and name != MORE_ATTRIBUTE}}",
        MANY,
    ),
)
