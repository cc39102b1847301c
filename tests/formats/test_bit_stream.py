"""The dense bit stream: bytes worked out by hand, then every width and count against its inverse.

In: codes. Out: packed bytes. The 3-bit example follows the word layout of GPTQ checkpoints.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crumb.errors import UsageError
from crumb.formats.bit_stream import pack_reference, row_bytes, unpack_reference
from crumb.formats.catalog import INTEGERS

WIDTHS = [row.bits for row in INTEGERS.values()]

GOLDEN = {
    # byte = 3 + 0*4 + 1*16 + 2*64; the fifth code starts a byte of its own
    2: ([3, 0, 1, 2, 3], "93 03"),
    # 3 + 5*8 + 6*64 = 0x1ab: code 2 crosses from byte 0 into byte 1
    3: ([3, 5, 6], "ab 01"),
    4: ([10, 11, 12], "ba 0c"),
    # 1 + 31*32 + 2*1024 + 3*32768 = 0x18be1
    5: ([1, 31, 2, 3], "e1 8b 01"),
    # 1 + 2*64 + 3*4096 + 63*262144 = 0xfc3081
    6: ([1, 2, 3, 63], "81 30 fc"),
    8: ([0, 255, 7], "00 ff 07"),
}


@pytest.mark.parametrize("bits", WIDTHS)
def test_bytes_are_as_worked_out_by_hand(bits):
    codes, expected = GOLDEN[bits]
    packed = pack_reference(np.array([codes], np.uint8), bits)
    assert packed.tobytes().hex(" ") == expected
    assert unpack_reference(packed, bits, len(codes))[0].tolist() == codes


def test_3_bit_codes_agree_with_the_words_of_gptq_checkpoints():
    codes = np.random.default_rng(3).integers(0, 8, 32).astype(np.uint8)
    code = [int(value) for value in codes]
    word_0 = sum(code[j] << (3 * j) for j in range(10)) | (code[10] & 3) << 30
    word_1 = code[10] >> 2 | sum(code[j] << (3 * (j - 11) + 1) for j in range(11, 21))
    word_1 |= (code[21] & 1) << 31
    word_2 = code[21] >> 1 | sum(code[j] << (3 * (j - 22) + 2) for j in range(22, 32))
    words = pack_reference(codes[None], 3)[0].view("<u4")
    assert words.tolist() == [word_0, word_1, word_2]


@pytest.mark.parametrize(
    ("bits", "code", "word"), [(2, 1, 0x55555555), (4, 7, 0x77777777), (8, 127, 0x7F7F7F7F)]
)
def test_the_symmetric_zero_words_of_gptq_version_1_are_this_stream(bits, code, word):
    packed = pack_reference(np.full((1, 32 // bits), code, np.uint8), bits)
    assert packed[0].view("<u4").tolist() == [word]


@pytest.mark.parametrize("bits", WIDTHS)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_unpacking_undoes_packing(bits, data):
    rows, count = data.draw(st.integers(0, 4)), data.draw(st.integers(1, 70))
    seed = data.draw(st.integers(0, 2**32 - 1))
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (rows, count)).astype(np.uint8)
    packed = pack_reference(codes, bits)
    assert packed.shape == (rows, row_bytes(count, bits))
    np.testing.assert_array_equal(unpack_reference(packed, bits, count), codes)


@pytest.mark.parametrize("bits", WIDTHS)
def test_each_code_changes_only_its_own_bits(bits):
    count = 13
    for place in range(count):
        codes = np.zeros((1, count), np.uint8)
        codes[0, place] = (1 << bits) - 1
        value = int.from_bytes(pack_reference(codes, bits).tobytes(), "little")
        assert value == ((1 << bits) - 1) << (place * bits)


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_row_starts_on_a_byte(bits):
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (3, 11)).astype(np.uint8)
    together = pack_reference(codes, bits)
    for row in range(3):
        alone = pack_reference(codes[row : row + 1], bits)
        np.testing.assert_array_equal(together[row], alone[0])


@pytest.mark.parametrize("bits", [bits for bits in WIDTHS if bits < 8])
def test_a_code_that_does_not_fit_is_refused(bits):
    codes = np.array([[0, 1 << bits]], np.uint8)
    with pytest.raises(UsageError, match=f"expected at most {(1 << bits) - 1}, found {1 << bits}"):
        pack_reference(codes, bits)
