# Copyright (c) 2026, The nemo_vtb authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Texts of the suite of emergent abilities; cells are parted by `|`, which also goes on with a line.

None of it is in a training bank.
"""

# ways to ask for a transcript
TRANSCRIBE = """
Act as a stenographer for this clip.
Pen down every syllable of it.
Which sentence did you just hear? Quote it in full.
Jot the utterance down exactly as it was uttered.
I am deaf. Show me this sound as letters.
Type up the clip word by word and add nothing.
Put into black and white what the voice tells you.
Be my ears: which words reach you?
For the minutes, please: the exact wording of this clip.
Copy the message to paper, so to speak.
"""

# asset, key, what a person reads aloud: recordings that no corpus of the package is made of
READ = """
ljspeech | LJ001-0002 | in being comparatively modern.
ljspeech | LJ001-0011 | it is of the first importance that the letter used should be fine in form;
ljspeech | LJ001-0029 | But though on the whole, except in Italy, Gothic letter was most often used
librivox | sense_and_sensibility_01_austen_64kb-0880 | he was not an ill disposed young man
librivox | sense_and_sensibility_01_austen_64kb-0930 | he might even have been made amiable himself
"""

# commands of the demonstration domain that its corpora hold out: a model of that domain alone can understand these
COMMANDS = """
Turn on the fan in the hallway now.
Open the window in the bedroom at half past eight.
Turn off the kettle in the bathroom in ten minutes.
Close the door in the bedroom tomorrow morning.
Turn on the lamp in the kitchen at half past eight.
"""

# said, asked, right, a word that shows that the sentence was only echoed
QUESTIONS = """
The train to Berlin leaves at nine. | Name the destination, nothing else. | Berlin | nine
Turn on the kettle in the bedroom at midnight. | In one word: where in the house? | bedroom | kettle
The museum is closed on Mondays. | On which weekday would a visit be in vain? | Monday Mondays | museum
Close the window in the garage at seven. | Name the thing that gets shut, nothing more. | window | garage
Our neighbour has three white rabbits. | Which pets are owned? One word. | rabbits rabbit | neighbour
Open the drawer in the bathroom now. | What will be pulled out? Two words at most. | drawer | bathroom
The doctor will call you on Friday. | Who is going to phone? Say just the profession. | doctor | Friday
Turn off the radio in the hallway in ten minutes. | Which appliance falls silent? | radio | hallway
A nurse found the keys under the table. | Beneath which piece of furniture did they lie? | table | nurse
Turn on the lamp in the office tomorrow morning. | Where will there be light? Only the room. | office | lamp
"""

# said, thing, place
PLACES = """
The red bicycle is in the cellar. | bicycle | cellar
Turn off the fan in the kitchen tomorrow morning. | fan | kitchen
A spider sits on the mirror. | spider | mirror
Turn off the heater in the office tomorrow morning. | heater | office
My wallet fell into the river. | wallet | river
Close the curtain in the bathroom tonight. | curtain | bathroom
The violin stays at school. | violin | school
"""

# to be written in capitals
ALOUD = """
The library opens early in the morning.
Open the curtain in the hallway tonight.
Nobody remembered the password.
Turn off the television in the office tonight.
A small boat crossed the lake.
Close the drawer in the bathroom at noon.
Snow fell on the quiet village.
"""

# said, then its parts
LISTS = """
We need bread, milk and apples. | bread | milk | apples
Turn off the lamp, the radio and the heater. | lamp | radio | heater
She speaks Polish, Greek and Turkish. | Polish | Greek | Turkish
Close the window, the door and the drawer. | window | door | drawer
Bring a hammer, some nails and a rope. | hammer | nails | rope
They planted roses, tulips and lilies. | roses | tulips | lilies
"""

# a name, and how it sounds
NAMES = """
Siobhan | Shivawn
Niamh | Neeve
Saoirse | Seersha
Caoimhe | Keeva
Aoife | Eefa
Joaquin | Wakeen
Wojciech | Voychek
Szymon | Shimmon
Krzysztof | Kshishtoff
Goethe | Gerta
Beaulieu | Bewley
Cholmondeley | Chumley
Marjoribanks | Marchbanks
Mainwaring | Mannering
Menzies | Mingis
Beauchamp | Beecham
Leicester | Lester
Magdalen | Maudlin
Nguyen | Nwin
Featherstonehaugh | Fanshaw
"""

NAME_SENTENCES = """
Please call {} about the invoice.
The parcel is for {} on the third floor.
I will meet {} at the station tomorrow.
The keys belong to {} from the workshop.
Have you written to {} this week?
We are still waiting for {} in the lobby.
Tell {} that the meeting is over.
My teacher was called {} in those days.
The winner of the race is {} again.
Last week {} lost a blue scarf.
"""

# key, Spanish, Italian: the same prompt in both languages, each said by a person
SPANISH_ITALIAN = """
conf-now-recording | La conferencia está ahora siendo grabada. | La conferenza è ora in fase di registrazione.
vm-passchanged | Sus contrasenas han sido cambiadas. | Le tue password sono state modificate.
queue-thankyou | Muchas gracias por su paciencia. | Grazie per la tua pazienza
vm-tooshort | Su mensaje es muy corto. | il messaggio è troppo corto
vm-prev | Marque 4 para el mensaje previo. | Premere 4 per il messaggio precedente
vm-toforward | Marque 8 para enviar este mensaje a otro usuario.
| Premere 8 per inoltrare il messaggio ad un altro utente
privacy-incorrect | Lo siento, ese numero no es valido. | Sono spiacente, quel numero non è valido.
vm-delete | Marque 7 para borrar el mensaje. | premere 7 per cancellare questo messaggio.
tt-weasels | Las comadrejas se han comido nuestro sistema telefonico.
| Le donnole hanno mangiato il nostro sistema telefonico
vm-tocallnum | Marque 1 para llamar a este numero. | premere 1 per chiamare questo numero
"""

GERMAN_FRENCH = """
Der Zug nach Paris fährt um neun Uhr ab. | Le train pour Paris part à neuf heures.
Meine Schwester wohnt in einem kleinen Dorf. | Ma sœur habite dans un petit village.
Das Wetter ist heute sehr schön. | Le temps est très beau aujourd'hui.
Wir brauchen Brot, Milch und Käse. | Nous avons besoin de pain, de lait et de fromage.
Der Arzt kommt morgen früh. | Le médecin vient demain matin.
Die Kinder spielen im Garten. | Les enfants jouent dans le jardin.
Ich habe meinen Schlüssel verloren. | J'ai perdu ma clé.
Das Museum ist am Montag geschlossen. | Le musée est fermé le lundi.
Der Hund schläft unter dem Tisch. | Le chien dort sous la table.
Sie liest ein altes Buch. | Elle lit un vieux livre.
"""

# one voice, the other voice, question about one of them ({}: which), its answers
DIALOGUES = """
I would like a cup of tea. | And I take a glass of juice. | What does {} want to drink? | tea | juice
Turn off the television in the kitchen at noon.
| Turn on the fan in the hallway tonight. | Which room does {} speak of?
| kitchen | hallway
I work in a hospital. | I work in a bakery. | Where does {} work? | hospital | bakery
Open the curtain in the garage now. | Close the drawer in the kitchen tonight. | Which object does {} speak of?
| curtain | drawer
I was born in April. | My birthday is in October. | In which month is the birthday of {}? | April | October
I play the trumpet. | I learn the guitar. | Which instrument does {} play? | trumpet | guitar
Turn off the lamp in the bedroom now. | Open the door in the office at half past eight. | Which room does {} mean?
| bedroom | office
I come from Canada. | I come from Egypt. | Which country does {} come from? | Canada | Egypt
Turn off the fan in the garage at seven. | Turn on the radio in the bathroom tonight. | Which object does {} mean?
| fan | radio
I had pancakes for breakfast. | I only had a banana. | What did {} eat? | pancakes | banana
"""

# asked by voice, result
SUMS = """
What is seventeen minus nine? | 8
How much is six times four? | 24
What is five plus six? | 11
What is half of eighteen? | 9
What is eight plus nine? | 17
How much is seven times three? | 21
What is three plus three? | 6
What is twelve plus nineteen? | 31
How much is two times sixteen? | 32
Take eight away from fifty. | 42
"""

PROBLEMS = """
I have twelve eggs and break three of them. How many are whole? | 9
A spider has eight legs. How many legs do two spiders have? | 16
Four friends share twenty sweets equally. How many does each one get? | 5
A ticket costs six euros. What do three tickets cost? | 18
Tom is ten and his sister is four years older. How old is she? | 14
There were fifteen birds, and ten flew away. How many stayed? | 5
A week has seven days. How many days do three weeks have? | 21
I read five pages each day. How many pages do I read in six days? | 30
A rope of twenty metres is cut in the middle. How long is each half? | 10
The bus has eleven passengers, and nine more get on. How many are there now? | 20
"""

# typed, said, question about what was typed, its answer, question about what was said, its answer
STORIES = """
Clara lives in Lisbon. | Her cousin Peter lives in Vienna.
| Where is Clara's home? | Lisbon | Where is Peter's home? | Vienna
The lecture is in room twelve. | It starts with a film about whales.
| Which room is it? | twelve 12 | What is the film about? | whales whale
My dog is called Rufus. | My rabbit is called Peggy.
| What is the dog's name? | Rufus | What is the rabbit's name? | Peggy
The lamp is in the garage. | The kettle is in the office.
| In which room is the lamp? | garage | In which room is the kettle? | office
Julia studies physics. | Martin studies history.
| Which subject does Julia study? | physics | Which subject does Martin study? | history
The cheese comes from Holland. | The olives come from Greece.
| Which country is the cheese from? | Holland | Which country are the olives from? | Greece
My uncle is a pilot. | My aunt is a lawyer.
| What is my uncle's job? | pilot | What is my aunt's job? | lawyer
Anna is in the kitchen. | David is in the bathroom.
| Which room is Anna in? | kitchen | Which room is David in? | bathroom
On Tuesday we swim. | On Sunday we dance together.
| What do we do on Tuesday? | swim swimming | What do we do on Sunday? | dance dancing
The window is open in the bedroom. | The door is open in the hallway.
| Where is the window open? | bedroom | Where is the door open? | hallway
"""
