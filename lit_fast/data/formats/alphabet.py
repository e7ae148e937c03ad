"""The alphabet of VDCNN (Conneau et al. 2017, section 3): 69 tokens, and which byte is which.

0 pads, 1 stands for every character that is not in the alphabet, 2..67 are the 66 characters in the order the paper
prints them, 68 is the space: the numbering of LIT's released code. The paper prints a circumflex accent where Zhang et
al. 2015 have the ASCII character ``^``: it counts as ``^``.
"""

PADDING = 0
UNKNOWN = 1
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789-,;.!?:'\"/|_#$%^&*~`+=<>()[]{} "
SYMBOLS = 2 + len(CHARACTERS)  # 69


def byte_tokens() -> bytes:
    """The token of each byte: letters of either case alike, `UNKNOWN` for all that is not in the alphabet.

    Of a character beyond ASCII only the first byte counts, so that it is one `UNKNOWN`.
    """
    table = bytearray([UNKNOWN] * 256)
    for token, character in enumerate(CHARACTERS, 2):
        table[ord(character)] = table[ord(character.upper())] = token
    return bytes(table)
