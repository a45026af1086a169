"""Mutations of the pages for operators: permissions, confirmations, limits, and hidden arguments."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

ACTIONS: Final = "tests/admin/test_record_actions.py"
LIST: Final = "tests/admin/test_record_list.py"
PAGE: Final = "tests/admin/test_record_page.py"
OVERVIEW: Final = "tests/admin/test_overview.py"

MUTATIONS: Final = (
    *(
        Mutation(
            f"the admin's action needs no permission to {name}",
            "admin/actions.py",
            f'return request.user.has_perm("lambda_tasks.{name}_taskrecord")',
            "return True",
            f"{ACTIONS}::TestPermissions",
        )
        for name in ("run_again", "cancel", "delete", "export")
    ),
    *(
        Mutation(
            f"the admin's action {name} does not ask",
            "admin/actions.py",
            f"        if not is_confirmed(request):\n            return confirmation(self, request, {rows}, {name})\n",
            "",
            f"{ACTIONS}::TestConfirmation",
        )
        for name, rows in (("_RUN_AGAIN", "possible"), ("_CANCEL", "rows"), ("_DELETE", "rows"))
    ),
    Mutation(
        "the admin exports without asking",
        "admin/actions.py",
        "if not is_confirmed(request) or form not in export.FORMATS:",
        "if form not in export.FORMATS:",
        f"{ACTIONS}::TestConfirmation",
    ),
    Mutation(
        "the admin's actions have no limit",
        "admin/actions.py",
        "        return rows[:limit]\n",
        "        return rows\n",
        f"{ACTIONS}::TestConfirmation",
    ),
    Mutation(
        "the admin deletes records of tasks that have not ended",
        "admin/actions.py",
        "queryset.filter(status__in=ENDED), MOST_DELETED)",
        "queryset, MOST_DELETED)",
        f"{ACTIONS}::TestDelete",
    ),
    Mutation(
        "the admin deletes records of messages in the outbox",
        "admin/actions.py",
        "return [row for row in rows if row.pk not in kept]",
        "return rows",
        f"{ACTIONS}::TestDelete",
    ),
    Mutation(
        "the admin deletes records of messages in an outbox elsewhere",
        "admin/actions.py",
        "for alias in {database, *_databases_of_outboxes()}:",
        "for alias in {database}:",
        f"{ACTIONS}::TestDelete",
    ),
    Mutation(
        "the admin cancels a chain of retries twice",
        "admin/actions.py",
        "rows = _one_of_each_chain(self._limited(request, queryset.filter(status__in=UNENDED), MOST_CANCELLED))",
        "rows = self._limited(request, queryset.filter(status__in=UNENDED), MOST_CANCELLED)",
        f"{ACTIONS}::TestCancel",
    ),
    Mutation(
        "the admin's exports contain formulas",
        "admin/export.py",
        """return f"'{text}" if text.startswith(_FORMULA) else text""",
        "return text",
        f"{ACTIONS}::TestExport",
    ),
    Mutation(
        "the admin exports hidden arguments",
        "admin/export.py",
        "    if with_arguments:\n",
        "    if True:\n",
        f"{ACTIONS}::TestExport",
    ),
    Mutation(
        "an unavailable queue breaks the page of the admin",
        "admin/rerunning.py",
        "        except Exception as error:\n",
        "        except ZeroDivisionError as error:\n",
        f"{ACTIONS}::TestRunAgain",
    ),
    Mutation(
        "the admin shows sensitive arguments of old records",
        "admin/record_page.py",
        "        return masked(kwargs, find_task(record.task_name).sensitive)\n",
        "        return dict(kwargs)\n",
        f"{PAGE}::TestMasking",
    ),
    Mutation(
        "the admin searches sensitive arguments of old records",
        "admin/search.py",
        "return found.exclude(task_name__in=hidden) if hidden else found",
        "return found",
        f"{LIST}::TestArguments",
    ),
    Mutation(
        "users search arguments that they may not see",
        "admin/records.py",
        "case search.ByArguments(arguments) if self._may_search_arguments(request, queryset):",
        "case search.ByArguments(arguments):",
        f"{LIST}::TestArguments",
    ),
    Mutation(
        "users see arguments that are hidden from them",
        "admin/records.py",
        "        if self.has_view_arguments_permission(request, obj):\n            return fieldsets\n",
        "        return fieldsets\n",
        f"{LIST}::TestArguments",
    ),
    Mutation(
        "the admin fails on ids from the far future",
        "admin/showing.py",
        " or seconds > _LATEST:",
        ":",
        f"{LIST}::TestColumns",
    ),
    Mutation(
        "links of the admin can run scripts",
        "settings/values.py",
        '        if not template.startswith(("https://", "http://")):\n',
        "        if False:\n",
        f"{PAGE}::TestLinks",
    ),
    Mutation(
        "links of the admin contain values without quoting them",
        "admin/record_page.py",
        'quoted = {name: quote(value, safe="") for name, value in values.items()}',
        "quoted = values",
        f"{PAGE}::TestLinks",
    ),
    Mutation(
        "the overview needs no permission",
        "admin/overview.py",
        "        if not self.has_view_permission(request):\n",
        "        if False:\n",
        f"{OVERVIEW}::TestPermission",
    ),
    Mutation(
        "the overview links to records that the user may not see",
        "admin/overview.py",
        "site=self.admin_site.name if may_follow else None",
        "site=self.admin_site.name",
        f"{OVERVIEW}::TestPermission",
    ),
    Mutation(
        "an unavailable cache breaks the overview",
        "admin/overview.py",
        '    except Exception as error:\n        logger.warning("The cache is unavailable',
        '    except ZeroDivisionError as error:\n        logger.warning("The cache is unavailable',
        f"{OVERVIEW}::TestCache",
    ),
    Mutation(
        "unavailable CloudWatch breaks the overview",
        "admin/queue_ages.py",
        "    except (BotoCoreError, ClientError) as error:\n",
        "    except ClientError as error:\n",
        f"{OVERVIEW}::TestSections",
    ),
    Mutation(
        "the overview is computed for each request",
        "admin/overview.py",
        "            cache.set(key, found, seconds)\n",
        "            pass\n",
        f"{OVERVIEW}::TestCache",
    ),
    Mutation(
        "sending from the outbox is not logged in the admin",
        "admin/outbox.py",
        "        self._log_sent(request, rows[: sending.tried])\n",
        "",
        "tests/admin/test_outbox_admin.py::TestSendNow",
    ),
    Mutation(
        "actions on schedules are not logged in the admin",
        "admin/schedules.py",
        "        log_changes(request, changed, str(done))\n",
        "",
        "tests/operations/test_periodic_tasks.py::TestAdmin",
    ),
)
