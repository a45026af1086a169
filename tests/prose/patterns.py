"""Define the patterns of the lint: what each finds, why, and what to write instead."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tests.prose.extract import Kind, Piece

#: The text around a match that `unless` is applied to, in characters.
BEFORE: Final = 50
AFTER: Final = 30


@dataclass(frozen=True, slots=True)
class Pattern:
    """One thing to avoid. All expressions ignore case unless they say `(?-i:…)`."""

    name: str
    #: Lower-case strings, one of which each match contains. A search for them is much faster than the expression.
    contains: tuple[str, ...]
    expression: re.Pattern[str]
    why: str
    instead: str
    #: Skip a match if this is found in the text around it.
    unless: re.Pattern[str] | None = None
    #: The kinds of prose that the pattern applies to; all if empty.
    kinds: frozenset[Kind] = frozenset()

    def matches(self, piece: Piece) -> Iterator[re.Match[str]]:
        """Yield the matches in a piece of prose."""
        if self.kinds and piece.kind not in self.kinds:
            return
        text = piece.flat
        lower = text.lower()
        if self.contains and not any(word in lower for word in self.contains):
            return
        for match in self.expression.finditer(text):
            around = max(match.start() - BEFORE, 0), match.end() + AFTER
            if self.unless is None or not self.unless.search(text, *around):
                yield match


def _pattern(
    name: str,
    contains: str,
    expression: str,
    why: str,
    instead: str,
    *,
    unless: str | None = None,
    kinds: frozenset[Kind] = frozenset(),
) -> Pattern:
    return Pattern(
        name,
        tuple(contains.split("|")) if contains else (),
        re.compile(expression, re.IGNORECASE),
        why,
        instead,
        re.compile(unless, re.IGNORECASE) if unless else None,
        kinds,
    )


MESSAGES: Final[frozenset[Kind]] = frozenset({"error", "string"})
SENTENCES: Final[frozenset[Kind]] = frozenset(
    {"docstring", "string", "error", "paragraph", "list item", "cell", "html"}
)
NAMES: Final[frozenset[Kind]] = frozenset({"test name"})

#: Where a sentence begins.
_START: Final = r"(?:^|(?<=[.!?] ))"
#: The same, or where a clause begins.
_CLAUSE: Final = r"(?:^|(?<=[.!?:;] ))"
_END: Final = r"(?=\s*(?:[.,;:!?)]|$))"
_BE: Final = r"(?:is|are|was|were|be|been|being)"
_VERB: Final = r"(?:is|are|was|were|has|have|had|does|do|did|can|cannot|could|must|may|might|will|would|should)"
#: What is commonly done to messages and tasks: participles that do not end in "ed".
_PARTICIPLE: Final = (
    r"(?:\w+ed|\w+en|sent|kept|run|done|put|had|made|read|told|found|left|lost|built|shown|known|held|begun|"
    r"brought|paid|set|cut|met|said|sold|caught|thought|spent|understood|withdrawn|drawn|thrown|gone)"
)

PATTERNS: Final = (
    # Words and phrases
    _pattern(
        "for ever",
        "for ever",
        r"\bfor ever\b",
        "It is an old spelling.",
        "forever, indefinitely, or the time limit that applies",
    ),
    _pattern("anew", "anew", r"\banew\b", "It is literary.", "again, or rebuild, restart, recompute"),
    _pattern(
        "at once",
        "at once",
        r"\bat once\b",
        "It means both immediately and simultaneously.",
        "immediately; at the same time",
        unless=r"\b(two|three|four|five|ten|hundred|thousand|\d[\d,]*|_|several|many|all|both|number|lists?|threads|runs|"
        r"takeover|as many|how many|more than one|everything|batch(es)?|in memory|frozen|read of)\b[^.;:!?]*"
        r"\bat once\b|\bat once,? (to|with|at most)\b",
    ),
    _pattern(
        "by now", "by now", r"\bby now\b", "It is vague about the time.", "name the event: after it has committed"
    ),
    _pattern(
        "any more",
        "any more",
        r"\bany more\b(?! than\b)(?! (?!is\b|was\b|has\b|its\b|waits\b|as\b)\w+(?:s|ing)\b)",
        "The adverb hides the change behind the negation.",
        "no longer; or the state it is in now",
    ),
    _pattern(
        "begun",
        "begun",
        r"\b(?:is|are|was|were|be|been|being) (?:not )?(?:\w+ly )?begun\b"
        r"|\bwhat [^.;,]{1,40} (?:has|had|have) (?:ever )?begun\b"
        r"|\bbegun (?:it\b|them\b|the\b|an?\b|one\b|and\b|anew\b|again\b)",
        "Work is not an object that is begun.",
        "started, or claimed",
    ),
    _pattern(
        "met",
        "met",
        r"\b(?:is|are|was|were|be|been|being) met\b",
        "Values and errors are not met.",
        "found, raised, or encountered",
        unless=r"\b(conditions?|criteri(on|a)|requirements?|deadlines?|needs?|prerequisites?|goals?|limits?|"
        r"expectations?|preconditions?)\b[^.;]* met\b",
    ),
    _pattern(
        "meets",
        "meet",
        r"\bmeets? (?:it|them|him|her|one|another|others|each other|the other|whatever|an?|no)\b",
        "Programs do not meet what they come across.",
        "finds, encounters, or conflicts with",
        unless=r"\bmeets? (an?|no) (\w+ )?(condition|criterion|requirement|deadline|need|prerequisite|goal|limit)",
    ),
    _pattern(
        "stands",
        "stand|stood",
        r"(?<!\ba )(?<!side-by-)\b(?:stands?|stood)\b(?!-)(?! (?:in for|for|by|alone|out|up|down|back|still)\b)"
        r"(?! in" + _END + ")",
        "What is written or stored does not stand.",
        "is, is in, remains, or is committed",
    ),
    _pattern(
        "hears of",
        "hear",
        r"\b(?:hears?|heard)(?: \w+)? of\b|\b(?:hears?|heard) (?:nothing|no)\b",
        "Code does not hear.",
        "is notified of, is called with, or receives",
    ),
    _pattern(
        "by this", "by this", r"\bby this\b" + _END, "The pronoun has no noun.", "name the cause: by the second run"
    ),
    _pattern(
        "without a word",
        "without a word",
        r"\bwithout a word\b",
        "It is a figure of speech.",
        "without recording a result, or without an error message",
    ),
    _pattern("on the average", "on the average", r"\bon the average\b", "The phrase has no article.", "on average"),
    _pattern(
        "of X's",
        "'s",
        r"\bof (?:(?:the|an?|some|this|that) )?[\w.-]+'s(?: own)?(?:"
        + _END
        + r"| (?=(?:that|which|is|are|was|were|would|"
        r"has|have|after|before|in|of|on|at|to|for|and|or|may|can|cannot|does|when|where|if|by|with|from|beside)\b))",
        "A double genitive reads like a translation.",
        "put the owner first: an SQS error, the command's exit code",
    ),
    _pattern(
        "by lot",
        " lot| drawn",
        r"\bby lot\b|\b(?:delay|wait|pause|jitter|number|second|time)s? (?:is|are|was|were) drawn\b",
        "The field's word is jitter.",
        "with jitter, or at random",
    ),
    _pattern(
        "whoever",
        "whoever|whomever|whosoever",
        r"\bwho(?:m|so)?ever\b",
        "The actor has a name.",
        "name it: the caller, the worker, the code that commits",
    ),
    _pattern(
        "somebody",
        "somebody",
        r"\bsomebody\b",
        "The actor has a name.",
        "name it: an operator, another process, the user",
    ),
    _pattern(
        "nobody",
        "nobody",
        r"\bnobody\b",
        "The actor has a name.",
        "name who does not: no worker, no relay; or use the passive",
    ),
    _pattern(
        "is no X",
        " no ",
        r"\b" + _BE + r" no\b(?! (?:longer|more|less|later|earlier|better|worse|good|use|doubt|different|wonder|faster|"
        r"slower|larger|smaller|greater|fewer|bigger|older|newer|shorter|easier|harder|deeper|safer|news)\b)"
        r"(?! exception" + _END + ")",
        "It stands for a negated predicate.",
        "is not a X; or name what it is: malformed, unknown",
        unless=r"\b(?:is|are|was|were) no (reason|problem) to\b|\bno problem\b|\bthere(?:'s)?(?: \w+)?(?: \w+)?(?: be| been)? no\b|\bthere (?:is|are|was|were)\b[^.;:,]* no\b|, no\b|\bor no\b",
    ),
    _pattern(
        "is none",
        "none",
        r"\b" + _BE + r" (?-i:none)\b(?! of\b)",
        "The reader has to look for what is negated.",
        "repeat the noun: a malformed message, an invalid return value",
        unless=r"\bthere(?: \w+)?(?: \w+)?(?: be| been)? none\b",
    ),
    _pattern(
        "has not",
        "not",
        r"\b(?:that|which) [\w' ]{1,15} (?:has|have|had) not"
        + _END
        + r"|\b(?:has|have|had) not (?=(?:an?|the|any|its|one)\b)",
        "It is an old form of a negated have.",
        "lacks, or does not have",
    ),
    _pattern(
        "a try",
        " try| tries",
        r"\b(?:an?|another|each|every|one|first|second|third|fourth|failed|last|final|next|further|single|new|every|\d+) try\b"
        r"(?! (?:to|again|block|statement|clause|it|them)\b)(?![-/…:])"
        r"|\b(?:failed|all|these|those|its|their|of|between|after|the|more|fewer|few|many|several|other|some|what|"
        r"previous|earlier|two|three|four|five|ten|hundred|thousand|\d+|(?<!\w )_) tries\b(?! (?:to|again|it|them|the|a|an|every)\b)",
        "As a noun, the field's word is attempt.",
        "attempt",
    ),
    _pattern(
        "away",
        "away",
        r"\b(?:" + _BE + r"|stay|stays|stayed) away\b|\b(?:go|goes|going|gone|went) away\b",
        "A service is not at a distance.",
        "unavailable, unreachable, or not delivered",
        unless=r"\b(errors?|problems?|warnings?|symptoms?|need|failures?|bugs?|difference|hits?)\b"
        r"[^.;]{0,30} (go|goes|went|gone) away",
    ),
    _pattern(
        "a text",
        "text",
        r"\btexts\b|\b(?:an?|each|every|empty|non-empty) text\b"
        r"(?! (?:files?|fields?|columns?|editors?|mode|messages?|attributes?|format|form|nodes?|search|version|type|body|log|block)\b)",
        "In Python, the type is a string.",
        "string, or error message",
    ),
    _pattern(
        "such a one",
        "such",
        r"\bsuch an? one\b|\bsuch ones\b|\band only such\b|\bsuch as (?:are|is|was|were|have|has)\b",
        "The pronoun is archaic.",
        "repeat the noun",
    ),
    _pattern(
        "is not to say",
        "not to say",
        r"\b(?:this|that|it|which) (?:is|was) not to say\b",
        "A message says what happened.",
        "state it: This check was skipped.",
    ),
    _pattern(
        "is to be done",
        " to be ",
        r"\b(?:is|are)(?: not)? to be (?:\w+ly )?" + _PARTICIPLE + r"\b",
        "It can mean an obligation, a plan or a possibility.",
        "must be, will be, or can be",
    ),
    _pattern(
        "that is to",
        " to ",
        r"\b(?:that|which|what|who) (?:is|are) (?:not )?to (?!be\b|the\b|say\b|an?\b|it\b|them\b|this\b|that\b|blame\b|"
        r"\w+(?:'s|s)\b)[a-z]+\b",
        "It can mean an obligation or a plan.",
        "must, will, or should",
    ),
    _pattern(
        "was to",
        " to ",
        r"\b(?:was|were) to be \w+|\b(?:it|that|which|what|this|they|and) was to (?!the\b|an?\b)\w+",
        "It can mean an obligation, a plan or a condition.",
        "should have, had to, or was scheduled to",
    ),
    _pattern(
        "beside",
        "beside",
        r"\bbeside\b",
        "It is a place, and rarely the one that is meant.",
        "next to, in addition to, with, or other than",
    ),
    _pattern("lastly", "lastly", r"\blastly\b", "It is not how a list of attempts ends.", "most recently, or finally"),
    _pattern(
        "so",
        "so",
        r"\b(?:called|used|named|said|set|written|told|sent|kept|made|left|recorded|configured|marked|stays?|stay|"
        r"remains?|works?|ends?|begins?|known|meant|given|asked|opened|logged|listed|declared) so"
        + _END
        + r"|\bcannot be \w+ so\b|\bwhy so\b|"
        + _START
        + r"so (?:it does|it is with|they do|it did)\b",
        "The reader has to find what it refers to.",
        "this way, as described above; or say the fact again",
    ),
    _pattern(
        "nor",
        "nor ",
        _CLAUSE + r"nor\b",
        "A sentence with a verb before its subject is hard to scan.",
        "start with the subject: X does not … either",
    ),
    _pattern(
        "archaic",
        "",
        r"\b(?:whilst|amongst|thereof|therein|thereto|thereupon|whereupon|wherein|whereof|hitherto|henceforth|heretofore|"
        r"hereby|herewith|unto|lest|albeit|nigh|betwixt|forthwith|oftentimes|shall|ought to|learnt|spelt|"
        r"twofold|erstwhile|aforesaid|inasmuch|insofar)\b",
        "The word is archaic, legal or rare outside of Britain.",
        "while, among, of it, must, will, should, or immediately",
    ),
    _pattern(
        "as ever",
        "as ever",
        r"\bas ever\b",
        "It does not say what stays the same.",
        "unchanged, or as without this setting",
    ),
    _pattern(
        "in clear",
        "in clear",
        r"\bin (?:the )?clear" + _END + r"|\bin clear\b",
        "The field's word is plain text.",
        "in plain text, or unmasked",
    ),
    _pattern(
        "be had",
        "be had",
        r"\b(?:can|cannot|could|may|to|must|might|will)(?: not)? be had\b",
        "It reads like a translation.",
        "is available, or can be acquired",
    ),
    _pattern(
        "sake",
        "sake",
        r"\bfor [^.;]{0,25}(?:'s|its|their) sake\b",
        "A database does nothing for the sake of another transaction.",
        "name the cause: after a deadlock",
    ),
    _pattern(
        "in bites",
        "in bites|made good|make good|its like|the place of|by way of|found out",
        r"\bin bites\b|\bma[dk]e good\b|\band its like\b|\bin the place of\b|\bby way of\b(?! example)|"
        r"\b(?:is|are|be|was|were) found out\b",
        "The idiom is translated.",
        "in short rounds, compensated, similar, instead of, through, or detected",
    ),
    _pattern(
        "all is",
        "all is",
        r"\b(?:until|when|that|once|after|if|where|whether) all is\b",
        "As a pronoun, all is literary.",
        "everything, or name the things",
    ),
    _pattern(
        "is over",
        "over",
        r"\b(?:leases?|time|limits?|timeouts?|deadline|period|window|pause|retention)(?: \w+)? (?:is|are|was|were) over\b",
        "The field's word is to expire.",
        "has expired, or has passed",
    ),
    _pattern(
        "not there",
        "not there",
        r"\b(?:is|are|was|were) not there\b",
        "There is no place.",
        "does not exist, or is missing",
    ),
    _pattern(
        "say of",
        " of ",
        r"\b(?:say|says|said|tell|tells) of (?:an?|the|it|what|that|each|them|its|every|those)\b",
        "The object of a report comes first.",
        "report X, or state that",
    ),
    _pattern(
        "knows no",
        "know",
        r"\b(?:know|knows|knew) (?:no|nothing|none)\b",
        "It stands for a missing feature.",
        "does not support, does not have, or is not aware of",
    ),
    _pattern(
        "other ones",
        "ones|one's",
        r"\bother ones\b|\banother ones?'?s\b|\bone's own\b|\bthe ones of\b",
        "The pronoun replaces a noun that the reader needs.",
        "repeat the noun, or different",
    ),
    # Sentences
    _pattern(
        "is to X what",
        " what ",
        r"\b(?:is|are) to [^.;]{1,50} what\b",
        "A proportion is a riddle.",
        "treat X like Y, and say in what respect",
    ),
    _pattern(
        "What …",
        "what",
        _START + r"what(?:ever)?(?! (?:to|you|it)\b)(?: \w+)? " + _VERB + r"\b(?! you\b)"
        # Not a question, not the line above a list, and not the two words at the head of a column.
        r"(?![^.!]*\?)(?![^.;!?]*:(?:\s|$))(?=(?: [^\s.]+){3})",
        "A clause as the subject is a riddle.",
        "name the thing: messages that are due, an invalid value",
        kinds=SENTENCES,
    ),
    _pattern(
        "Who …",
        "who ",
        r"(?:^|(?<=[.!?;] ))who \w+(?![^.!]*\?)",
        "A clause as the subject is a riddle.",
        "name the actor: users with the view permission",
        kinds=SENTENCES,
    ),
    _pattern(
        "that which",
        " which",
        r"\b(?:that|those|all that|one) which\b(?! of\b)",
        "The pronoun is archaic.",
        "name the thing",
    ),
    _pattern(
        "Four can",
        "",
        _START + r"(?:two|three|four|five|six|seven|eight|\d+) (?:can|cannot|may|must|do|will|could|does)\b",
        "A number is not an actor.",
        "Any of the following four commands can",
        kinds=SENTENCES,
    ),
    _pattern(
        "value; give",
        "",
        r"; give\b|^(?-i:give) (?:an?|the|one|its|it|True|them)\b|^[\w.@]+ (?:is|has) _(?:; |, (?:but|which)\b)",
        "An error states the constraint and then the value.",
        "X must be Y, not V",
        unless=r"\bmust be\b",
        kinds=MESSAGES,
    ),
    # Names of tests
    _pattern(
        "long test name",
        "",
        r"^(?:\S+ ){8}.*$",
        "A test's name has at most eight words, and its class gives the context.",
        "subject, verb, object; leave out the conditions that the class or the test shows",
        kinds=NAMES,
    ),
    _pattern(
        "start of a test name",
        "",
        r"^(?:an?|what|whatever|nothing|nobody|somebody|who|whoever|nor|so|and|or)\b",
        "A test's name begins with its subject.",
        "drop the article, or name the thing or the actor",
        kinds=NAMES,
    ),
)
