"""Configuration keys: from one declaration come parsing, bounds, names and texts."""

import enum
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.options import Form, OptionError, Options, camel_case, option, properties_text


class Colour(enum.Enum):
    RED = "RED"
    DARK_BLUE = "DARK_BLUE"


@dataclass(kw_only=True)
class Sample(Options):
    """One option of every kind."""

    queue_nums: int = option(8, "Queues.", ge=1, le=16, important=True)
    flag: bool = option(True, "A flag.")
    colour: Colour = option(Colour.RED, "A colour.")
    check_crc: bool = option(False, "An exception of the name rule.", key="checkCRC")
    host: str = option("", "A computed default.", factory=lambda: "computed", fixed=True)
    digits: str = option("1", "A text with a form.", form=Form("digits", str.isdigit))


class TestNames:
    def test_keys_follow_the_rule_or_are_given(self) -> None:
        assert list(Sample.declared()) == ["queueNums", "flag", "colour", "checkCRC", "host", "digits"]

    @pytest.mark.parametrize(("attribute", "key"), [("a", "a"), ("flush_disk_type", "flushDiskType")])
    def test_camel_case(self, attribute: str, key: str) -> None:
        assert camel_case(attribute) == key

    def test_an_annotation_that_text_cannot_become_is_refused(self) -> None:
        @dataclass(kw_only=True)
        class Wrong(Options):
            ratio: float = option(0.5, "Not a kind of option.")

        with pytest.raises(TypeError, match=r"Wrong\.ratio"):
            Wrong.declared()


class TestParsing:
    def test_each_kind_is_read(self) -> None:
        text = {"queueNums": "3", "flag": "false", "colour": "DARK_BLUE", "checkCRC": "TRUE", "digits": "77"}
        options = Sample.from_properties(text, "a.properties")
        assert options == Sample(queue_nums=3, flag=False, colour=Colour.DARK_BLUE, check_crc=True, digits="77")
        assert options.explicit == set(text)
        assert options.source == "a.properties"

    def test_what_is_not_given_keeps_its_default(self) -> None:
        options = Sample.from_properties({})
        assert (options.queue_nums, options.host, options.explicit) == (8, "computed", set())

    def test_blanks_around_a_value_do_not_count(self) -> None:
        assert Sample.from_properties({"queueNums": " 3 \t", "colour": "RED "}).queue_nums == 3

    def test_keys_of_other_classes_are_ignored(self) -> None:
        assert Sample.from_properties({"brokerName": "x"}) == Sample()

    @pytest.mark.parametrize("text", ["0", "17", "-1", "", "3.0", "0x3", "1_0", "\uff13", "eight", "9" * 30])
    def test_an_int_outside_its_bounds_is_refused(self, text: str) -> None:
        with pytest.raises(OptionError, match="a whole number from 1 to 16") as caught:
            Sample.from_properties({"queueNums": text})
        assert (caught.value.key, caught.value.value) == ("queueNums", text)

    @pytest.mark.parametrize("text", ["1", "16", "+5", "007"])
    def test_an_int_at_its_bounds_is_taken(self, text: str) -> None:
        assert Sample.from_properties({"queueNums": text}).queue_nums == int(text)

    @pytest.mark.parametrize("text", ["yes", "1", "", "ture"])
    def test_a_bool_is_true_or_false_and_nothing_else(self, text: str) -> None:
        with pytest.raises(OptionError, match=r"flag=.*: allowed is true or false"):
            Sample.from_properties({"flag": text})

    def test_an_enum_names_what_it_takes(self) -> None:
        with pytest.raises(OptionError, match="colour=red: allowed is RED or DARK_BLUE"):
            Sample.from_properties({"colour": "red"})

    def test_a_form_refuses_with_its_own_words(self) -> None:
        with pytest.raises(OptionError, match="digits=x: allowed is digits"):
            Sample.from_properties({"digits": "x"})

    @pytest.mark.parametrize("text", ["a\nflag=false", "a\x00b", "x" * 4097])
    def test_a_text_is_one_line(self, text: str) -> None:
        with pytest.raises(OptionError, match="one line of text"):
            Sample.from_properties({"host": text})

    @given(st.text(max_size=300))
    def test_a_refusal_is_one_short_line_whatever_was_given(self, text: str) -> None:
        with pytest.raises(OptionError) as caught:
            Sample.from_properties({"colour": "x" + text})
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 1000


class TestChange:
    def test_changes_are_taken_and_named(self) -> None:
        options = Sample()
        assert options.change({"queueNums": "9", "flag": "true", "other": "1"}) == ["queueNums"]
        assert options.queue_nums == 9
        assert options.explicit == {"queueNums"}

    def test_one_bad_value_means_that_nothing_changes(self) -> None:
        options = Sample()
        with pytest.raises(OptionError, match="flag"):
            options.change({"queueNums": "9", "flag": "perhaps"})
        assert options == Sample()

    def test_a_fixed_key_refuses_another_value_and_nothing_changes(self) -> None:
        options = Sample()
        with pytest.raises(OptionError, match="cannot change while running"):
            options.change({"queueNums": "9", "host": "elsewhere"})
        assert options == Sample()

    def test_a_fixed_key_may_be_sent_back_as_it_is(self) -> None:
        options = Sample()
        assert options.change(options.to_properties()) == []


class TestPrinting:
    def test_all_keys_or_the_important_ones(self) -> None:
        assert Sample().to_properties(important=True) == {"queueNums": "8"}
        assert properties_text(Sample().to_properties()) == (
            "queueNums=8\nflag=true\ncolour=RED\ncheckCRC=false\nhost=computed\ndigits=1\n"
        )

    @given(
        st.builds(
            Sample,
            queue_nums=st.integers(1, 16),
            flag=st.booleans(),
            colour=st.sampled_from(Colour),
            host=st.text("abc.-", max_size=9),
        )
    )
    def test_what_is_printed_reads_back_equal(self, options: Sample) -> None:
        assert Sample.from_properties(options.to_properties()) == options
