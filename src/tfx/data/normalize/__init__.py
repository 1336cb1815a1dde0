"""The embedded data set `normalize`: spoken numbers on the source side, written ones on the target side.

The task is inverse text normalization, the reverse of the task in Sproat and Jaitly, "RNN Approaches to
Text Normalization: A Challenge" (2016, arXiv 1611.00068), whose semiotic classes are the kinds here. Rules
make all examples, with number words from the library num2words.

The source is lower case without punctuation. About two in five examples are inside a short carrier phrase,
which the target repeats word for word. Equal sources always have equal targets.

=========  =================================================================  =========================
kind       spoken (source)                                                    written (target)
=========  =================================================================  =========================
cardinal   one thousand [and] five; a hundred and six; twelve hundred         1,005; 106; 1,200
..         minus forty two; three point zero five; three point oh five        -42; 3.05; 3.05
..         one point five million; two and a half million                     1.5 million; 2.5 million
ordinal    twenty third; one hundred [and] fifth; hundred and fifth           23rd; 105th; 105th
date       the third of may nineteen oh five; may [the] third two thousand    3 May 1905; 3 May 2000
..         march twenty third; friday the third of may                        23 March; Friday 3 May
..         may twenty fourteen; the year sixteen thirty                       May 2014; the year 1630
time       half past four; [a] quarter to nine in the evening; ten to one     04:30; 20:45; 12:50
..         seven oh five p m; sixteen thirty; zero seven thirty               19:05; 16:30; 07:30
..         four o clock; eleven p m; sixteen hundred hours                    04:00; 23:00; 16:00
amount     three euros; three dollars [and] twenty cents; five pounds fifty   €3; $3.20; £5.50
..         fifty pence; three point two million dollars                       £0.50; $3.2 million
measure    five point five kilometers per hour; minus ten degrees celsius     5.5 km/h; -10 °C
..         two and three quarters miles; two hours [and] fifteen minutes      2.75 mi; 2 h 15 min
=========  =================================================================  =========================

A time without a part of the day is on the 24-hour clock: "half past four" alone is 04:30, and "ten to one"
alone is 12:50. A part of the day describes the time itself and not the hour that is named: "ten to twelve
a m" is 11:50.

No value of a kind is in two splits. The value is the number without its sign, unit or currency, the time of
day, or the date without its weekday; the two numbers of "2 h 15 min" are one value. A keyed hash of kind and
value assigns 90 % of the values to train, 5 % to valid and 5 % to test. The assignment depends neither on
the seed nor on the sizes, so no test value of one seed is in the train split of another.

The embedded data set `kinds` asks for the kind alone: a text to a label.
"""

from tfx.data.normalize.generator import generate, kinds

__all__ = ["generate", "kinds"]
