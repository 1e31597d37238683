"""The numbers of the protocol: spot values that the specification names, and rules over all of them."""

import pytest

from protocol.codes import (
    VERSION,
    VERSION_HIGHEST,
    VERSION_RUNNING_INFO,
    LanguageCode,
    RequestCode,
    ResponseCode,
    version_name,
)


@pytest.mark.parametrize(
    ("ordinal", "name"),
    [
        (0, "V3_0_0_SNAPSHOT"),
        (15, "V3_0_0_FINAL"),
        (28, "V3_0_7_SNAPSHOT"),
        (36, "V3_0_11_SNAPSHOT"),
        (37, "V3_0_11"),
        (47, "V3_1_0"),
        (62, "V3_1_8_SNAPSHOT"),
        (79, "V3_2_6"),
        (121, "V3_4_9"),
        (232, "V4_1_0_SNAPSHOT"),
        (273, "V4_3_0"),
        (293, "V4_4_0"),
        (317, "V4_5_2"),
        (355, "V4_7_1"),
        (373, "V4_8_0"),
        (393, "V4_9_0"),
        (399, "V4_9_3"),
        (401, "V4_9_4"),
        (409, "V4_9_8"),
        (412, "V5_0_0_SNAPSHOT"),
        (413, "V5_0_0"),
        (441, "V5_1_4"),
        (453, "V5_2_0"),
        (479, "V5_3_3"),
        (611, "V5_9_9"),
        (612, "HIGHER_VERSION"),
    ],
)
def test_version_names_follow_the_enum_of_the_official_program(ordinal: int, name: str) -> None:
    assert version_name(ordinal) == name


@pytest.mark.parametrize("ordinal", [-1, VERSION_HIGHEST + 1, 32767])
def test_versions_outside_the_enum_clamp(ordinal: int) -> None:
    assert version_name(ordinal) == "HIGHER_VERSION"


def test_version_names_are_distinct() -> None:
    names = [version_name(ordinal) for ordinal in range(VERSION_HIGHEST + 1)]
    assert len(set(names)) == len(names) == 613


def test_we_report_the_base_line() -> None:
    assert version_name(VERSION) == "V4_9_4"
    assert version_name(VERSION_RUNNING_INFO) == "V3_1_8_SNAPSHOT"


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (10, "SEND_MESSAGE"),
        (11, "PULL_MESSAGE"),
        (38, "GET_CONSUMER_LIST_BY_GROUP"),
        (105, "GET_ROUTEINFO_BY_TOPIC"),
        (310, "SEND_MESSAGE_V2"),
        (351, "GET_TOPIC_CONFIG"),
        (907, "GET_BROKER_HA_STATUS"),
        (200050, "POP_MESSAGE"),
    ],
)
def test_request_codes_have_the_names_of_the_official_program(code: int, name: str) -> None:
    assert RequestCode(code).name == name


def test_no_request_code_has_two_names() -> None:
    assert list(RequestCode.__members__) == [code.name for code in RequestCode]


def test_only_the_renumbered_response_codes_have_two_names() -> None:
    aliases = {name for name, code in ResponseCode.__members__.items() if name != code.name}
    assert aliases == {"POLLING_FULL", "POLLING_TIMEOUT", "BROKER_NOT_EXIST"}


def test_languages_are_numbered_without_gaps() -> None:
    assert [language.value for language in LanguageCode] == list(range(14))
