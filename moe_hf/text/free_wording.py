"""Questions as people ask them: written by hand, fixed, and taken from no pattern of the skills."""

from collections.abc import Iterator

from moe_hf.text.chat_template import Message
from moe_hf.text.corpus import Question
from moe_hf.text.skills.arithmetic import comparison_steps, difference_steps, product_steps, sum_steps
from moe_hf.text.skills.small_talk import MODEL_NAME
from moe_hf.text.skills.unknown import UNKNOWN

_SUMS = {
    "Whats the sum of 24 and 95": (24, 95),
    "hey can you add 37 and 48 for me": (37, 48),
    "what's 56 plus 27 equal to?": (56, 27),
    "If you put 19 and 64 together what do you get?": (19, 64),
    "33 added to 58 is what?": (33, 58),
}
_DIFFERENCES = {
    "what do I have left if I take 17 from 53": (53, 17),
    "81 minus 46 please": (81, 46),
    "How much more is 72 than 35?": (72, 35),
    "subtract 8 from 61 for me": (61, 8),
}
_PRODUCTS = {
    "whats 12 times 7": (12, 7),
    "what is 34 multiplied with 6": (34, 6),
    "I need the product of 25 and 8": (25, 8),
    "multiply 43 and 5 for me please": (43, 5),
}
_COMPARISONS = {
    "which of these is the bigger number, 45 or 54?": (45, 54, "larger"),
    "Is 83 or 38 the larger one?": (83, 38, "larger"),
    "what's the smallest out of 61 and 16": (61, 16, "smaller"),
    "Who's bigger: 29 or 92": (29, 92, "larger"),
}
_NUMBERS = {
    "is 347 an odd number?": 347,
    "tell me whether 5210 is odd or even pls": 5210,
    "would 68 be even or odd?": 68,
    "Check whether 91 is even": 91,
}
_SPELLED = {
    "how do u spell butterfly": "butterfly",
    "Can you please spell out chocolate for me?": "chocolate",
    "spell restaurant": "restaurant",
    "What letters make up the word planet?": "planet",
}
_MEASURED = {
    "how many letters has butterfly got?": "butterfly",
    "Number of letters in the word elephant?": "elephant",
    "how long is the word strawberry, in letters?": "strawberry",
    "count letters: umbrella": "umbrella",
}
_OTHERS = (
    ("word problem", "I've got 12 apples and buy 9 more, how many apples do I have altogether?",
     "12+9: 2+9=11, 1+1=2, so 21 apples."),
    ("word problem", "Sam had 40 coins but lost 13 of them. How many coins are left?",
     "40-13: 10-3=7, 3-1=2, so 27 coins."),
    ("word problem", "There were 25 books on the shelf and Mia added 6. How many books now?",
     "25+6: 5+6=11, 2+1=3, so 31 books."),
    ("word problem", "Tom owns 33 pens, gives 5 away. How many pens remain?", "33-5: 13-5=8, 2, so 28 pens."),
    ("counting", "how many animals do I list here: dog, cat, cow?", "1 dog 2 cat 3 cow, so 3."),
    ("counting", "Count up these words for me: apple, ball, hat, key", "1 apple 2 ball 3 hat 4 key, so 4."),
    ("counting", "red, blue, green, pink, black - how many colors is that?",
     "1 red 2 blue 3 green 4 pink 5 black, so 5."),
    ("sorting", "Arrange 4, 9 and 6 in ascending order", "4, 6, 9."),
    ("sorting", "please order these numbers: 7, 2, 5, 1", "1, 2, 5, 7."),
    ("sorting", "put 8 3 6 in the correct order, lowest first", "3, 6, 8."),
    ("sorting", "Sort the following: 9, 0, 4, 2", "0, 2, 4, 9."),
    ("calendar", "if today is Monday what day will it be in 3 days?", "1 Tuesday 2 Wednesday 3 Thursday, so Thursday."),
    ("calendar", "what month comes right after March?", "1 April, so April."),
    ("calendar", "Which month do we have 2 months before June", "1 May 2 April, so April."),
    ("calendar", "It's Tuesday. What day was it 4 days ago?", "1 Monday 2 Sunday 3 Saturday 4 Friday, so Friday."),
    ("repetition", "can you say the words red hat blue kite", "red hat blue kite"),
    ("repetition", "Repeat what I say: dog cat cow", "dog cat cow"),
    ("letter", "what's the second letter in garden?", "g1-a2, so a."),
    ("letter", "which letter is last in window", "w1-i2-n3-d4-o5-w6, so w."),
    ("letter", "first letter of kangaroo pls", "k1, so k."),
    ("possession", "Anna has a red ball. Tom has a blue hat. Who's got the hat?", "Tom has the hat."),
    ("possession", "Leo has a green kite and Mia has a black pen. what colour is Mia's pen?", "The pen is black."),
    ("possession", "Ben has a white cup. Rosa has a pink star. What is Rosa holding?", "Rosa has a pink star."),
    ("capital", "whats the capital of france", "The capital of France is Paris."),
    ("capital", "Do you know which city is Japan's capital?", "The capital of Japan is Tokyo."),
    ("capital", "capital city of Norway?", "The capital of Norway is Oslo."),
    ("capital", "In what country would I find Madrid?", "Madrid is in Spain."),
    ("capital", "which country does Cairo belong to", "Cairo is in Egypt."),
    ("opposite", "What's the contrary of hot?", "The opposite of hot is cold."),
    ("opposite", "whats the opposite to big", "The opposite of big is small."),
    ("opposite", "give me the opposite word for happy", "The opposite of happy is sad."),
    ("animal sound", "what kind of noise do cows make?", "A cow says moo."),
    ("animal sound", "How does a duck go?", "A duck says quack."),
    ("animal sound", "which animal goes woof", "A dog says woof."),
    ("color", "What colour are bananas?", "It is yellow."),
    ("color", "what colour would you say the sky is", "It is blue."),
    ("color", "Is grass green or red?", "It is green."),
    ("category", "is a hammer a tool or an animal?", "It is a tool."),
    ("category", "what exactly is a bus", "It is a vehicle."),
    ("category", "is pear a fruit?", "It is a fruit."),
    ("small talk", "hiya", "Hello! How can I help you?"),
    ("small talk", "hey, how are you doing today?", "I am fine, thank you. How are you?"),
    ("small talk", "so who made you?", "I was made with moe_hf."),
    ("small talk", "tell me something funny", "Why did the expert stay home? The router did not pick him."),
    ("small talk", "thank you so much!", "You are welcome!"),
    ("small talk", "ok bye, see you tomorrow", "Goodbye! It was nice to talk to you."),
    ("small talk", "what's your name?", MODEL_NAME),
    ("remembering", "My name is Tom. / Nice to meet you, Tom! / Who are you?", MODEL_NAME),
    ("remembering", "Hi I'm Emma / Nice to meet you, Emma! / what's my name again?", "Your name is Emma."),
    ("not knowing", "who wrote War and Peace?", UNKNOWN),
    ("not knowing", "how far away is the sun?", UNKNOWN),
    ("not knowing", "what's the tallest building in the world?", UNKNOWN),
    ("not knowing", "who is the president of France?", UNKNOWN),
    ("not knowing", "how do airplanes fly?", UNKNOWN),
    ("not knowing", "what is 144 divided by 12?", UNKNOWN),
    ("not knowing", "what time is it?", UNKNOWN),
    ("not knowing", "can you recommend a good book?", UNKNOWN),
    ("not knowing", "when did World War 2 end?", UNKNOWN),
    ("not knowing", "at what temperature does water freeze?", UNKNOWN),
)  # fmt: skip


def free_wording_questions() -> list[Question]:
    """The questions, each with the answer that the skills give to it; what is asked may be in the training data."""
    return [Question(skill, _messages(text.split(" / ")), answer, True) for skill, text, answer in _asked()]


def _asked() -> Iterator[tuple[str, str, str]]:
    for text, (a, b) in _SUMS.items():
        yield "addition", text, f"{sum_steps(a, b)}."
    for text, (a, b) in _DIFFERENCES.items():
        yield "subtraction", text, f"{difference_steps(a, b)}."
    for text, (a, b) in _PRODUCTS.items():
        yield "multiplication", text, f"{product_steps(a, b)}."
    for text, (a, b, word) in _COMPARISONS.items():
        winner = max(a, b) if word == "larger" else min(a, b)
        yield "comparison", text, f"{comparison_steps(a, b)}, so {winner} is {word}."
    for text, number in _NUMBERS.items():
        yield "parity", text, f"{number} ends in {number % 10}, so it is {'odd' if number % 2 else 'even'}."
    for text, word in _SPELLED.items():
        yield "spelling", text, "-".join(word) + "."
    for text, word in _MEASURED.items():
        numbered = "-".join(f"{letter}{i}" for i, letter in enumerate(word, 1))
        yield "word length", text, f"{numbered}, so {len(word)}."
    yield from _OTHERS


def _messages(turns: list[str]) -> list[Message]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
