"""What a question asks for, said word by word in other languages: for forms that ask in a language of their own.

It is a dictionary and no translator: a word that it does not hold stays as it is, and grammar is left alone. Whoever
has a translation model asks in its words instead (`ml.data.rewording`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Frame:
    """How a language asks: what stands before the name, between the name and the noun, and after the noun."""

    before_name: str
    between: str
    after: str


FRAMES: Final[Mapping[str, Frame]] = {
    "german": Frame("Eine Frage zu ", ": Wie lautet ", "? Bitte auf Deutsch antworten."),
    "french": Frame("Une question sur ", " : quel est ", " ? Répondez en français."),
    "spanish": Frame("Una pregunta sobre ", ": ¿cuál es ", "? Responda en español."),
}

WORDS: Final[Mapping[str, tuple[str, str, str]]] = {
    "account": ("Konto", "compte", "cuenta"),
    "address": ("Anschrift", "adresse", "dirección"),
    "alarm": ("Alarm", "alarme", "alarma"),
    "bank": ("Bank", "banque", "banco"),
    "best": ("beste", "meilleur", "mejor"),
    "birth": ("Geburt", "naissance", "nacimiento"),
    "birthplace": ("Geburtsort", "lieu de naissance", "lugar de nacimiento"),
    "boat": ("Boot", "bateau", "barco"),
    "card": ("Karte", "carte", "tarjeta"),
    "cat": ("Katze", "chat", "gato"),
    "certificate": ("Urkunde", "certificat", "certificado"),
    "charity": ("Hilfswerk", "association caritative", "organización benéfica"),
    "city": ("Stadt", "ville", "ciudad"),
    "club": ("Verein", "club", "club"),
    "code": ("Code", "code", "código"),
    "credit": ("Kredit", "crédit", "crédito"),
    "customer": ("Kunde", "client", "cliente"),
    "date": ("Datum", "date", "fecha"),
    "debit": ("Lastschrift", "débit", "débito"),
    "dentist": ("Zahnarzt", "dentiste", "dentista"),
    "doctor": ("Arzt", "médecin", "médico"),
    "dog": ("Hund", "chien", "perro"),
    "door": ("Tür", "porte", "puerta"),
    "driving": ("Fahren", "conduite", "conducir"),
    "email": ("E-Mail", "courriel", "correo electrónico"),
    "emergency": ("Notfall", "urgence", "emergencia"),
    "employer": ("Arbeitgeber", "employeur", "empleador"),
    "favourite": ("liebstes", "préféré", "favorito"),
    "fax": ("Fax", "fax", "fax"),
    "first": ("erste", "premier", "primer"),
    "friend": ("Freund", "ami", "amigo"),
    "garage": ("Garage", "garage", "garaje"),
    "gate": ("Tor", "portail", "portón"),
    "health": ("Gesundheit", "santé", "salud"),
    "holiday": ("Ferien", "vacances", "vacaciones"),
    "home": ("Zuhause", "domicile", "domicilio"),
    "landlord": ("Vermieter", "propriétaire", "casero"),
    "lawyer": ("Anwalt", "avocat", "abogado"),
    "library": ("Bibliothek", "bibliothèque", "biblioteca"),
    "licence": ("Erlaubnis", "permis", "licencia"),
    "loan": ("Darlehen", "prêt", "préstamo"),
    "locker": ("Spind", "casier", "taquilla"),
    "loyalty": ("Treue", "fidélité", "fidelidad"),
    "medicine": ("Arznei", "médicament", "medicina"),
    "mobile": ("Mobil", "mobile", "móvil"),
    "number": ("Nummer", "numéro", "número"),
    "of": ("von", "de", "de"),
    "parking": ("Parken", "stationnement", "aparcamiento"),
    "passport": ("Reisepass", "passeport", "pasaporte"),
    "pension": ("Rente", "retraite", "pensión"),
    "permit": ("Genehmigung", "permis", "permiso"),
    "phone": ("Telefon", "téléphone", "teléfono"),
    "plate": ("Kennzeichen", "plaque", "matrícula"),
    "policy": ("Police", "police", "póliza"),
    "residence": ("Aufenthalt", "séjour", "residencia"),
    "savings": ("Ersparnisse", "épargne", "ahorros"),
    "school": ("Schule", "école", "escuela"),
    "song": ("Lied", "chanson", "canción"),
    "sports": ("Sport", "sport", "deportes"),
    "student": ("Student", "étudiant", "estudiante"),
    "tax": ("Steuer", "impôt", "impuesto"),
    "teacher": ("Lehrer", "professeur", "profesor"),
    "trailer": ("Anhänger", "remorque", "remolque"),
    "travel": ("Reise", "voyage", "viaje"),
    "university": ("Universität", "université", "universidad"),
    "village": ("Dorf", "village", "pueblo"),
    "voicemail": ("Mailbox", "messagerie", "buzón de voz"),
    "work": ("Arbeit", "travail", "trabajo"),
}
_COLUMNS: Final = {language: column for column, language in enumerate(FRAMES)}


def translated(words: str, language: str) -> str:
    """Say each word of an attribute's name in `language`, in the order in which they stand."""
    column = _COLUMNS[language]
    return " ".join(WORDS[word][column] if word in WORDS else word for word in words.split())
