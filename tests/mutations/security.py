"""Mutations of the limits for users of the admin, senders of messages and readers of logs."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

LOOKUPS: Final = "tests/admin/test_admin_lookups.py"
SETTINGS: Final = "tests/project/test_secrets_in_settings.py"
MASKING: Final = "tests/recording/test_masking.py"

MUTATIONS: Final = (
    Mutation(
        "the admin accepts any lookup in the URL",
        "admin/listing.py",
        "return lookup in self._declared_lookups(request) or any(",
        "return super().lookup_allowed(lookup, value, request) or any(",
        f"{LOOKUPS}::TestFilters",
    ),
    Mutation(
        "the admin fails on values that the database cannot compare",
        "admin/lists.py",
        "        except (DataError, OverflowError, ValueError) as error:",
        "        except ZeroDivisionError as error:",
        f"{LOOKUPS}::TestHostileValues",
    ),
    Mutation(
        "the admin compares any number of values",
        "admin/lists.py",
        "        if any(len(values) > MOST_VALUES for values in self.get_filters_params().values()):\n",
        "        if False:\n",
        f"{LOOKUPS}::TestHostileValues",
    ),
    Mutation(
        "the admin sorts by any column of the list",
        "admin/lists.py",
        "        return self.sortable_by is None or column in self.sortable_by\n",
        "        return True\n",
        f"{LOOKUPS}::TestOrder",
    ),
    Mutation(
        "the admin acts on malformed ids",
        "admin/listing.py",
        "        if not all(self._is_key(text) for text in request.POST.getlist(ACTION_CHECKBOX_NAME)):\n",
        "        if False:\n",
        f"{LOOKUPS}::TestHostileValues",
    ),
    Mutation(
        "the admin searches for any number of words",
        "admin/search.py",
        "return TooLong() if len(text.split()) > MOST_WORDS else ByWords(text)",
        "return ByWords(text)",
        f"{LOOKUPS}::TestHostileValues",
    ),
    Mutation(
        "settings errors quote URLs",
        "recording/described.py",
        '    if "://" in text and (scheme := re.match(_SCHEME, text)):\n',
        "    if scheme := None:\n",
        SETTINGS,
    ),
    Mutation(
        "errors of strategies quote their options",
        "strategies.py",
        "told = without_secrets(reason, options)",
        "told = reason",
        SETTINGS,
    ),
    Mutation(
        "the cause of an error quotes options",
        "strategies.py",
        "from (error if told == reason else None)",
        "from error",
        SETTINGS,
    ),
    Mutation(
        "strategies can be of any class",
        "strategies.py",
        "    if not fits:\n",
        "    if False:\n",
        SETTINGS,
    ),
    Mutation(
        "strategy factories can return any class",
        "strategies.py",
        "    if not isinstance(made, import_string(_BASES[setting])):",
        "    if made is None:",
        SETTINGS,
    ),
    Mutation(
        "the database of a store can have any type",
        "stores/orm.py",
        "        if not isinstance(database, str | None):\n",
        "        if False:\n",
        SETTINGS + "::TestWrongKind",
    ),
    Mutation(
        "the databases of the outbox can have any type",
        "backends/outbox.py",
        " or not all(isinstance(alias, str) for alias in databases)",
        "",
        SETTINGS + "::TestWrongKind",
    ),
    Mutation(
        "checks depend on earlier imports",
        "operations/checks.py",
        "    registry.import_tasks_of_apps()\n    messages: list",
        "    messages: list",
        "tests/operations/test_checks.py::TestModulesOfTasks",
    ),
    Mutation(
        "eager mode accepts unknown queues",
        "settings/__init__.py",
        "        elif queue != DEFAULT_QUEUE:\n",
        "        elif False:\n",
        "tests/project/test_settings.py::TestQueues",
    ),
    Mutation(
        "check() of a strategy ends manage.py check",
        "operations/checks.py",
        "        except Exception as error:\n            if not isinstance(error, ImproperlyConfigured):",
        "        except ImproperlyConfigured as error:\n            if not isinstance(error, ImproperlyConfigured):",
        SETTINGS,
    ),
    Mutation(
        "a faulty plugin ends manage.py check",
        "apps.py",
        '            if sys.argv[1:2] != ["check"]:\n                raise\n',
        "            raise\n",
        SETTINGS,
    ),
    Mutation(
        "secrets can replace variables that run code",
        "secret_loader.py",
        "    elif re.fullmatch(_REFUSED, target):\n",
        "    elif False:\n",
        "tests/project/test_secret_loader.py",
    ),
    Mutation(
        "RedisLock ignores its prefix",
        "locks/redis.py",
        "return acquire_key(self.client, self._prefix + key,",
        "return acquire_key(self.client, key,",
        SETTINGS,
    ),
    Mutation(
        "single lines of a secret are not masked",
        "recording/masking.py",
        "            for part in _parts(text):\n",
        "            for part in (text,):\n",
        MASKING,
    ),
    Mutation(
        "the size of masked secrets is unlimited",
        "recording/masking.py",
        "            if size > MAX_SIZE:\n",
        "            if 0:\n",
        MASKING,
    ),
    Mutation(
        "the time to mask secrets is unlimited",
        "recording/masking.py",
        " or _clock() > self._deadline:\n",
        ":\n",
        MASKING,
    ),
    Mutation(
        "the length of masked strings is unlimited",
        "recording/masking.py",
        "        if len(text) > MAX_SEARCHED:\n",
        "        if False:\n",
        MASKING,
    ),
    Mutation(
        "arguments are masked separately for the record and the log",
        "jobs.py",
        "        if not self._printed or self._printed[0][0] is not error:",
        "        if True:",
        MASKING,
    ),
    Mutation(
        "argument names can forge log lines",
        "recording/storable.py",
        "return printable(str(part), max_length=50)",
        "return str(part)[:50]",
        MASKING,
    ),
    Mutation(
        "task names can contain control characters",
        "wire/invocation.py",
        r'_NAME_PART: Final = r"[^\s.\x00-\x1f\x7f-\x9f\ud800-\udfff]+"',
        r'_NAME_PART: Final = r"[^\s.\x00\ud800-\udfff]+"',
        MASKING,
    ),
    Mutation(
        "task names can contain lone surrogates",
        "wire/invocation.py",
        r"\x7f-\x9f\ud800-\udfff]",
        r"\x7f-\x9f]",
        MASKING,
    ),
)
