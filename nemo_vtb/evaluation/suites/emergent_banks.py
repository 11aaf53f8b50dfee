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

__all__ = [
    'ALOUD',
    'DIALOGUES',
    'GERMAN_FRENCH',
    'LISTS',
    'NAMES',
    'NAME_SENTENCES',
    'PLACES',
    'PROBLEMS',
    'QUESTIONS',
    'READ',
    'SPANISH_ITALIAN',
    'STORIES',
    'SUMS',
    'TRANSCRIBE',
]

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
ljspeech | LJ001-0004 | produced the block books, which were the immediate predecessors of the true printed book,
ljspeech | LJ001-0008 | has never been surpassed.
ljspeech | LJ001-0011 | it is of the first importance that the letter used should be fine in form;
ljspeech | LJ001-0013 | than in the same operations with ugly ones.
ljspeech | LJ001-0016 | The Middle Ages brought calligraphy to perfection, and it was natural therefore
ljspeech | LJ001-0029 | But though on the whole, except in Italy, Gothic letter was most often used
librivox | sense_and_sensibility_01_austen_64kb-0880 | he was not an ill disposed young man
librivox | sense_and_sensibility_01_austen_64kb-0890
| unless to be rather cold hearted and rather selfish is to be ill disposed
librivox | sense_and_sensibility_01_austen_64kb-0930 | he might even have been made amiable himself
"""

# said, asked, right, a word that shows that the sentence was only echoed
QUESTIONS = """
The train to Berlin leaves at nine. | Name the destination, nothing else. | Berlin | nine
My brother bought a yellow umbrella. | Tell me only the colour of what was bought. | yellow | brother
The museum is closed on Mondays. | On which weekday would a visit be in vain? | Monday Mondays | museum
Our neighbour has three white rabbits. | Which pets are owned? One word. | rabbits rabbit | neighbour
The doctor will call you on Friday. | Who is going to phone? Say just the profession. | doctor | Friday
We had soup and bread for dinner. | Which meal was it? A single word. | dinner | bread
The ship arrived from Norway with salmon. | Give the country alone. | Norway | salmon
A nurse found the keys under the table. | Beneath which piece of furniture did they lie? | table | nurse
Grandmother grows tomatoes behind the house. | What does she cultivate? Answer briefly. | tomatoes tomato | house
The concert begins after the storm. | Which weather is mentioned? One word. | storm | concert
"""

# said, thing, place
PLACES = """
The red bicycle is in the cellar. | bicycle | cellar
Put the letter on the piano. | letter | piano
A spider sits on the mirror. | spider | mirror
The camera is in the suitcase. | camera | suitcase
My wallet fell into the river. | wallet | river
They hid the treasure under the bridge. | treasure | bridge
The violin stays at school. | violin | school
"""

# to be written in capitals
ALOUD = """
The library opens early in the morning.
Nobody remembered the password.
A small boat crossed the lake.
The baker sold all his bread.
Snow fell on the quiet village.
Please water the flowers on the balcony.
The children painted the fence green.
"""

# said, then its parts
LISTS = """
We need bread, milk and apples. | bread | milk | apples
I packed a towel, a book and a hat. | towel | book | hat
She speaks Polish, Greek and Turkish. | Polish | Greek | Turkish
In the zoo we saw lions, zebras and monkeys. | lions | zebras | monkeys
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
We should go to the beach. | No, let us visit the castle. | Where does {} want to go? | beach | castle
My favourite animal is the horse. | I prefer the elephant. | Which animal does {} like best? | horse | elephant
I work in a hospital. | I work in a bakery. | Where does {} work? | hospital | bakery
I was born in April. | My birthday is in October. | In which month is the birthday of {}? | April | October
I play the trumpet. | I learn the guitar. | Which instrument does {} play? | trumpet | guitar
My car is silver. | Mine is purple. | Which colour is the car of {}? | silver | purple
I come from Canada. | I come from Egypt. | Which country does {} come from? | Canada | Egypt
I am afraid of spiders. | I am afraid of thunder. | What is {} afraid of? | spiders | thunder
I had pancakes for breakfast. | I only had a banana. | What did {} eat? | pancakes | banana
"""

# asked by voice, result
SUMS = """
What is seventeen minus nine? | 8
How much is six times four? | 24
Add fourteen and eleven. | 25
What is half of eighteen? | 9
What is thirty minus twelve? | 18
How much is seven times three? | 21
Divide twenty by five. | 4
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
The tent is orange. | The boat is brown.
| Which colour has the tent? | orange | Which colour has the boat? | brown
Julia studies physics. | Martin studies history.
| Which subject does Julia study? | physics | Which subject does Martin study? | history
The cheese comes from Holland. | The olives come from Greece.
| Which country is the cheese from? | Holland | Which country are the olives from? | Greece
My uncle is a pilot. | My aunt is a lawyer.
| What is my uncle's job? | pilot | What is my aunt's job? | lawyer
The first prize is a piano. | The second prize is a kite.
| What is the first prize? | piano | What is the second prize? | kite
On Tuesday we swim. | On Sunday we dance together.
| What do we do on Tuesday? | swim swimming | What do we do on Sunday? | dance dancing
The blue key opens the attic. | The green key opens the stable.
| What does the blue key open? | attic | What does the green key open? | stable
"""
