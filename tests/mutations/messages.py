"""What arrives, what is quoted, and what is stored of it."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

SENSITIVE: Final = "tests/faults/test_sensitive.py"
CANARIES: Final = "tests/faults/test_canaries.py"
INPUT: Final = "tests/faults/test_bad_input.py"
ODD: Final = "tests/faults/test_odd_results_and_errors.py"

MUTATIONS: Final = (
    Mutation(
        "sensitive arguments stand in the record",
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
        "a failure is logged with its error",
        "jobs.py",
        "        if self.task.sensitive:\n            logger.log",
        "        if self.task is None:\n            logger.log",
        SENSITIVE,
    ),
    Mutation(
        "plugins' errors are logged with the task's",
        "plugins.py",
        "    if run is None:\n",
        "    if run is None or run:\n",
        SENSITIVE,
    ),
    Mutation(
        "pieces of a sensitive argument are left",
        "tracebacks.py",
        "return without_pieces(storable(scrubbed(text, hiding)), hiding)",
        "return storable(scrubbed(text, hiding))",
        SENSITIVE,
    ),
    Mutation("asterisks multiply", "masking.py", ' and form.strip("*")', "", SENSITIVE),
    Mutation(
        "too many values are looked for",
        "masking.py",
        "    if len(forms) > _MAX_VALUES:\n        return _WITHHELD\n",
        "",
        SENSITIVE,
    ),
    Mutation(
        "errors say what is wrong inside of a sensitive argument",
        "fidelity.py",
        "    if path and path[0] in hidden:\n",
        "    if not path and path:\n",
        SENSITIVE,
    ),
    Mutation(
        "an error says where a sensitive argument would change",
        "signatures.py",
        "where = name if name in self.sensitive else change.where",
        "where = change.where",
        SENSITIVE,
    ),
    Mutation(
        "a message prints its arguments",
        "messages.py",
        "Field(default_factory=dict, repr=False)",
        "Field(default_factory=dict)",
        SENSITIVE,
    ),
    Mutation(
        "pydantic's errors quote a payload",
        "messages.py",
        '    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)\n\n    message:',
        '    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)\n\n    message:',
        SENSITIVE,
    ),
    Mutation(
        "a delivery prints its body",
        "deliveries.py",
        "    record: Mapping[str, Any] = field(repr=False)\n",
        "    record: Mapping[str, Any]\n",
        SENSITIVE,
    ),
    Mutation(
        "an error with the arguments hangs on InvalidMessage",
        "signatures.py",
        '            problems = self._problems(error)\n        raise InvalidMessage(f"The message does not fit {self.name}: {problems}")\n',
        '            problems = self._problems(error)\n            raise InvalidMessage(f"The message does not fit {self.name}: {problems}") from error\n',
        CANARIES,
    ),
    Mutation(
        "a line that cannot be written ends the batch",
        "logging.py",
        "            super().log(level, msg, *args, **kwargs)\n        except Exception:\n",
        "            super().log(level, msg, *args, **kwargs)\n        except ZeroDivisionError:\n",
        INPUT + "::test_a_line_that_cannot_be_written_is_written_in_other_characters",
    ),
    Mutation(
        "the context's clock is believed",
        "handler.py",
        "    except Exception:  # a stand-in for Lambda's context",
        "    except ZeroDivisionError:  # a stand-in for Lambda's context",
        INPUT + "::test_a_context_with_an_odd_clock_keeps_no_task_from_running",
    ),
    Mutation(
        "a clock without a number is believed",
        "handler.py",
        "return time.monotonic() + seconds if math.isfinite(seconds) else None",
        "return time.monotonic() + seconds",
        INPUT + "::test_a_context_with_an_odd_clock_keeps_no_task_from_running",
    ),
    Mutation(
        "half of a character is no id",
        "identity.py",
        'raw.encode("utf-8", "backslashreplace")',
        'raw.encode("utf-8")',
        INPUT + "::test_a_line_that_cannot_be_written_is_written_in_other_characters",
    ),
    Mutation(
        "a message is nested as deep as it likes",
        "messages.py",
        "    if depth(value) > MAX_DEPTH:\n",
        "    if depth(value) > 10 * MAX_DEPTH:\n",
        INPUT + "::test_a_body_of_any_depth_is_run_or_kept",
    ),
    Mutation(
        "every problem of a message is told",
        "fidelity.py",
        "problems[:_SAID_PROBLEMS]",
        "problems",
        INPUT + "::test_a_body_with_a_hundred_thousand_things_wrong_is_one_short_line",
    ),
    Mutation(
        "a field is named in its full length",
        "fidelity.py",
        "'.'.join(map(shown, path)) or whole",
        "'.'.join(map(str, path)) or whole",
        INPUT + "::test_a_field_that_the_documented_schema_has_not_makes_a_message_malformed",
    ),
    Mutation(
        "an event is an object",
        "deliveries.py",
        'event.get("Records") if isinstance(event, Mapping) else None',
        'event.get("Records")',
        INPUT + "::test_what_is_no_event_at_all_is_refused_as_such",
    ),
    Mutation(
        "a count of receives may be of any length",
        "deliveries.py",
        " and len(text) <= 15",
        "",
        INPUT + "::test_a_count_of_receives_of_any_kind_is_survived",
    ),
    Mutation(
        "a result fails by its own error",
        "results.py",
        "    except Exception as error:  # whatever",
        "    except (TypeError, ValueError, RecursionError) as error:  # whatever",
        ODD,
    ),
    Mutation(
        "an error that cannot be printed is not recorded",
        "tracebacks.py",
        "    except Exception as second:\n",
        "    except ZeroDivisionError as second:\n",
        ODD,
    ),
    Mutation(
        "NUL and half characters go to the database",
        "storable.py",
        """return text.replace("\\x00", r"\\x00").encode("utf-8", "backslashreplace").decode("utf-8")""",
        "return text",
        ODD,
    ),
)
