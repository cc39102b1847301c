"""Texts that repeat what they were asked about, and texts that do not: prompts and answers.

In: nothing. Out: pairs of a prompt and the answer that a capable model would write to it. Small
models copy badly: what guesses are worth on their own answers says little about copying.
"""

from __future__ import annotations

CODE = """\
def read_lines(path):
    with open(path) as file:
        return [line.strip() for line in file]


def count_words(lines):
    counts = {}
    for line in lines:
        for word in line.split():
            counts[word] = counts.get(word, 0) + 1
    return counts


def most_common(counts, limit):
    ordered = sorted(counts.items(), key=lambda item: item[1], reverse=True)
    return ordered[:limit]


def main(arguments):
    lines = read_lines(arguments.path)
    counts = count_words(lines)
    for word, count in most_common(counts, arguments.limit):
        print(f"{word}: {count}")
"""
EDITED = (
    "Here is the file with the function renamed and a type hint added:\n\n```python\n"
    + CODE.replace("count_words", "word_counts").replace(
        "def read_lines(path):", "def read_lines(path: str) -> list[str]:"
    )
    + "```\n\nOnly the name of the function, its call in `main`, and the signature of `read_lines` "
    "have changed."
)
FACTS = (
    "The river Rhine rises in the Swiss Alps as two streams that meet near Chur. It flows "
    "through Lake Constance and forms the border between Germany and France for 182 "
    "kilometres. At Basel it turns north and enters a wide valley between two ranges of "
    "hills. The Rhine is navigable from Rheinfelden to the North Sea, and Rotterdam at "
    "its mouth is the largest port of Europe. In the nineteenth century the upper Rhine "
    "was straightened, which made it shorter by 81 kilometres and lowered the water table "
    "of the plain. Salmon, which had been common until then, disappeared for almost a "
    "hundred years. Since the fire of 1986 at a chemical works near Basel the states "
    "along the river have worked together to clean it."
)
SUMMARY = (
    "The text describes the course and the history of the Rhine. On its course it says: "
    '"It flows through Lake Constance and forms the border between Germany and France for '
    '182 kilometres." Its use for trade is plain: "The Rhine is navigable from '
    "Rheinfelden to the North Sea, and Rotterdam at its mouth is the largest port of "
    'Europe." People changed the river: "In the nineteenth century the upper Rhine was '
    "straightened, which made it shorter by 81 kilometres and lowered the water table of "
    'the plain." The fish paid for this, for "Salmon, which had been common until then, '
    'disappeared for almost a hundred years." Today things are better, since "the states '
    'along the river have worked together to clean it."'
)
STORY = (
    "The lamp had burned for eleven nights without rest, and Hannah's hands smelled of "
    "oil even in her dreams. On the twelfth evening the wind swung round to the west and "
    "the sea began to lift itself against the rocks. She counted the ships that had gone "
    "out in the morning and the ships that had come home, and the numbers were not the "
    "same. So she climbed the stairs once more, trimmed the wick, and sat down beside the "
    "glass to wait. Near midnight a small light answered, far off, rising and falling. "
    "She did not wave, because nobody could have seen it, but she spoke to the light as "
    "one speaks to a child that walks along a wall."
)
EXPLANATION = (
    "A bicycle stays upright because its rider, knowingly or not, keeps steering it back "
    "under the weight that is about to fall. When the frame leans to one side, the front "
    "wheel turns a little toward that side, partly because of the angle of the fork and "
    "partly because the rider's hands allow it. The turn makes the whole machine follow a "
    "curve, and on that curve the tyres push the contact points sideways until they lie "
    "below the centre of gravity again. Spinning wheels resist being tilted, but that "
    "effect is small at walking pace; what matters far more is that the front assembly is "
    "free to turn. Lock the handlebars of a rolling bicycle and it falls over within a "
    "few metres."
)

REPEATING = {
    "code edit": (
        "Rename the function count_words to word_counts, add a type hint to read_lines, and print "
        f"the file:\n```python\n{CODE}```",
        EDITED,
    ),
    "summary with quotes": (
        f"Summarize this text and quote its most important sentences:\n{FACTS}",
        SUMMARY,
    ),
}
OTHER = {
    "story": ("Tell a story about a lighthouse keeper and a storm.", STORY),
    "explanation": ("Explain how a bicycle stays upright.", EXPLANATION),
}
