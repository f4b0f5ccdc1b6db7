"""Units of answers, and answers that give more than one number."""

import pytest

from s1jax.evaluate import grading, units


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("5 m", ("5", ("meter",))),
        ("5m", ("5", ("meter",))),
        (r"5\text{ meters}", ("5", ("meter",))),
        (r"5\,\mathrm{cm}", ("5", ("centimeter",))),
        (r"\frac{1}{2}\text{ hr}", (r"\frac{1}{2}", ("hour",))),
        (r"5\pi\text{ Feet}", (r"5\pi", ("foot",))),
        (r"12\text{ cm}^2", ("12", ("centimeter^2",))),
        ("12 square centimetres", ("12", ("centimeter^2",))),
        ("12 cm\u00b3", ("12", ("centimeter^3",))),
        ("5 km/h", ("5", ("kilometer", "hour"))),
        ("5 miles per hour", ("5", ("mile", "hour"))),
        ("5 mph", ("5", ("mile", "hour"))),
        (r"90^\circ", ("90", ("degree",))),
        ("18 dollars a day.", ("18", ("dollar",))),
        ("5 in.", ("5", ("inch",))),
        ("1,000 kg", ("1,000", ("kilogram",))),
        ("x = 5 m", ("x = 5", ("meter",))),
        ("12 m/s^2", ("12", ("meter", "second^2"))),
        ("12 V", ("12", ("volt",))),
        ("2 amperes", ("2", ("ampere",))),
        ("101 kPa", ("101", ("kilopascal",))),
        ("300 kelvin", ("300", ("kelvin",))),
        (r"10^{-9}\,\text{eV}", ("10^{-9}", ("electronvolt",))),
        (r"12^\circ\text{C}", ("12", ("degree", "celsius"))),
        ("12 degrees Fahrenheit", ("12", ("degree", "fahrenheit"))),
    ],
)
def test_a_number_and_its_unit(text, found):
    assert units.split(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "5",
        "5x",
        "5 apples",
        "meters",
        "5 in all",
        "3+2m",
        "5 ft 3 in",
        "5 hours or more",
        "5 m n",
        r"\sqrt{2}",
        r"\sin 5",
    ],
)
def test_no_single_unit(text):
    assert units.split(text) == (text, ())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("5 meters", "5 m"),
        ("5m", "5 meter"),
        ("2 hrs", "2 hour"),
        ("30 min", "30 minutes"),
        (r"5\mathrm{cm}", r"5\text{ cm}"),
        (r"\frac{1}{2}\text{ m}", "0.5 meters"),
        (r"5\pi\text{ cm}", r"5\pi\,\mathrm{cm}"),
        ("20 ft^2", "20 square feet"),
        ("5 km/h", "5 kph"),
        ("18 dollars a day", "18 dollars"),
        ("3 hours per day", "3 hours"),
        ("5 m", "5"),
        ("x = 5 m", "5 meters"),
        ("12 m^2", "12"),
        ("12 m/s^2", "12"),
        ("12 L", "12"),
        ("12 J", "12"),
        ("12 N", "12"),
        ("12 V", "12"),
        (r"12^\circ\text{C}", "12 degrees Celsius"),
        (r"12^\circ\text{C}", r"12^\circ"),
        ("12 \u00b0C", "12"),
        # Other nouns.
        ("12 apples", "12"),
        ("12 apples", "12 red apples"),
        ("1 apple", "1 apples"),
        # Two numbers, in any order.
        ("7 or 8", "8 or 7"),
        ("x=7 or x=8", "7,8"),
        (r"x=7\text{ or }x=8", "8,7"),
        ("5 or more", r"5\text{ or more}"),
        ("Tom has 5 and 7, so 12", "12"),
    ],
)
def test_the_same_amount(one, other):
    assert grading.equal(one, other) and grading.equal(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("5 m", "5 km"),
        (r"5\text{ cm}", r"5\text{ m}"),
        ("3 hours", "3 minutes"),
        ("18 dollars", "18 cents"),
        ("5 cm^2", "5 cm"),
        ("5 cm^2", "5 cm^3"),
        ("5 mph", "5 kph"),
        ("5 m/s", "5 km/s"),
        ("5 m", "6 m"),
        (r"12^\circ\text{C}", r"12^\circ\text{F}"),
        ("12m^2", "12"),
        ("12 V", "12 A"),
        ("12 apples", "12 oranges"),
        ("12 apples", "12 m"),
        ("1 hour 30 minutes", "30"),
        ("1 hour 30 minutes", "1"),
        ("5 ft 3 in", "3"),
        ("7 apples, 3 pears", "3"),
        ("12-5t", "(12-5)t"),
        ("7 or 8", "8"),
        ("7 or 8", "7"),
        ("x=7 or x=8", "8"),
        ("7 dollars or 8 dollars", "8"),
        ("12 apples and 7 oranges", "7"),
        ("5 hours and 30 minutes", "30"),
        (r"5 \text{ or more}", "5"),
        ("5 hours or more", "5"),
    ],
)
def test_another_amount(one, other):
    assert not grading.equal(one, other) and not grading.equal(other, one)
