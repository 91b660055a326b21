"""Another implementation of COSE (pycose) as the judge of ours, and ours as the judge of it.

    pycose_judge.py verify FILE X Y       says as JSON what is in a COSE_Sign1, and whether this key signed it
    pycose_judge.py sign FILE D NUMBER    the same label, credentials and payload under another number, made
                                          and signed by pycose: to standard output

X, Y and D are a key of P-256 in hexadecimal: its point, and its private scalar.
"""

import json
import sys

from pycose.algorithms import Es256
from pycose.headers import KID, Algorithm, ContentType
from pycose.keys import EC2Key
from pycose.keys.curves import P256
from pycose.messages import CoseMessage, Sign1Message

CWT_CLAIMS = 15
NUMBER = -70001


def verify(path, x, y):
    message = read(path)
    message.key = EC2Key(crv=P256, x=bytes.fromhex(x), y=bytes.fromhex(y))
    claims = message.phdr[CWT_CLAIMS]
    told = {
        "message": type(message).__name__,
        "verified": message.verify_signature(),
        "algorithm": message.phdr[Algorithm].__name__,
        "content_type": message.phdr.get(ContentType),
        "hash_algorithm": message.phdr.get(258),
        "hashed_content_type": message.phdr.get(259),
        "kid": message.phdr[KID].hex(),
        "source": claims[1],
        "stream": claims[2],
        "time": claims[6],
        "number": claims[NUMBER],
        "payload": message.payload.hex(),
    }
    print(json.dumps(told))


def sign(path, d, number):
    """Builds everything anew: no bytes of the original are kept."""
    original = read(path)
    claims = {key: value for key, value in original.phdr[CWT_CLAIMS].items()}
    claims[NUMBER] = int(number)
    message = Sign1Message(
        phdr={
            Algorithm: Es256,
            ContentType: original.phdr[ContentType],
            KID: original.phdr[KID],
            CWT_CLAIMS: claims,
        },
        uhdr=dict(original.uhdr),
        payload=original.payload,
    )
    message.key = EC2Key(crv=P256, d=bytes.fromhex(d))
    sys.stdout.buffer.write(message.encode())


def read(path):
    with open(path, "rb") as file:
        return CoseMessage.decode(file.read())


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    {"verify": verify, "sign": sign}[command](*arguments)
