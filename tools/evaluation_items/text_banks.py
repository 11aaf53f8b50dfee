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
"""What `text_items.py` makes questions of; lines of a question, its answer and three wrong ones."""

FACTS = """
What is the capital of France? | Paris | London | Madrid | Rome
What is the capital of Japan? | Tokyo | Beijing | Seoul | Bangkok
What is the capital of Italy? | Rome | Berlin | Lisbon | Vienna
What is the capital of England? | London | Dublin | Paris | Oslo
What is the capital of Germany? | Berlin | Prague | Warsaw | Rome
What is the capital of Spain? | Madrid | Athens | Cairo | Paris
What is the capital of China? | Beijing | Tokyo | Delhi | Moscow
What is the capital of Russia? | Moscow | Kiev | Helsinki | London
What is the largest planet of the solar system? | Jupiter | Mars | Venus | Mercury
Which planet is closest to the sun? | Mercury | Saturn | Jupiter | Neptune
What is the largest ocean on Earth? | the Pacific Ocean | the Arctic Ocean | the Indian Ocean | the Red Sea
How many days are there in a week? | seven | five | nine | twelve
How many months are there in a year? | twelve | ten | seven | twenty
How many legs does a spider have? | eight | four | six | two
How many legs does a dog have? | four | two | six | eight
How many minutes are there in an hour? | sixty | thirty | ten | one hundred
How many sides does a triangle have? | three | four | five | six
At what temperature does water freeze, in degrees Celsius? | 0 | 50 | 100 | 200
At what temperature does water boil, in degrees Celsius? | 100 | 0 | 20 | 500
What is the chemical formula of water? | H2O | CO2 | NaCl | O3
Which gas do people need to breathe? | oxygen | helium | neon | methane
Which gas do plants take in from the air? | carbon dioxide | helium | hydrogen | argon
Who wrote Romeo and Juliet? | William Shakespeare | Mark Twain | Charles Dickens | Jane Austen
Who developed the theory of relativity? | Albert Einstein | Isaac Newton | Charles Darwin | Marie Curie
Who described evolution by natural selection? | Charles Darwin | Albert Einstein | Napoleon | Mozart
Which star do the planets travel around? | the Sun | the Moon | Sirius | the North Star
What travels around the Earth? | the Moon | the Sun | Mars | Venus
In which country is the Great Wall? | China | Mexico | France | Egypt
In which country are the pyramids of Giza? | Egypt | Greece | India | Brazil
In which city is the Eiffel Tower? | Paris | New York | Sydney | Rome
On which continent is Brazil? | South America | Europe | Africa | Asia
On which continent is Kenya? | Africa | Europe | Asia | Australia
Which language is spoken in Germany? | German | Greek | Arabic | Hindi
Which currency is used in Japan? | yen | dollar | pound | peso
Which organ pumps blood through the body? | the heart | the liver | the skin | the stomach
Which organ do people think with? | the brain | the lungs | the kidneys | the knee
What do bees make? | honey | milk | silk | wool
Which metal is attracted by a magnet? | iron | gold | silver | aluminium
What is the hardest natural material? | diamond | wood | chalk | butter
What is the tallest animal? | the giraffe | the horse | the wolf | the mouse
"""

COMMONSENSE = """
You open an umbrella when | it rains | you sleep | you read | you eat
When you are hungry, you should | eat something | buy a hat | close the door | count to ten
When you are thirsty, you should | drink water | eat salt | run faster | wear a coat
When you are tired, you should | go to sleep | paint the house | learn a language | buy a car
If you drop a glass on a stone floor, it will | break | fly | grow | sing
If you leave ice in the sun, it will | melt | burn | grow | freeze
If you heat water for a long time, it will | boil | freeze | break | turn to stone
If it is dark in a room, you can | turn on the light | open a book | drink tea | wash the car
Before you cross a street, you should | look both ways | close your eyes | take off your shoes | sing a song
To cut bread, you use a | knife | spoon | pillow | pencil
To write a letter, you use a | pen | fork | hammer | shoe
To drive a nail into wood, you use a | hammer | spoon | towel | book
To eat soup, you use a | spoon | knife | comb | key
To open a locked door, you need a | key | cup | ribbon | leaf
To dry your hands, you use a | towel | mirror | stone | lamp
To see what time it is, you look at a | clock | door | plate | chair
To keep food cold, you put it in a | fridge | oven | drawer | bed
To bake a cake, you put it in an | oven | envelope | aquarium | office
Fish live in | water | trees | books | clouds
Birds use their wings to | fly | cook | write | read
In winter people wear | warm coats | swimsuits | sandals | sunglasses only
You go to the dentist when | your teeth hurt | your car is dirty | the sun shines | you won a prize
You call the fire brigade when | a house burns | it is Monday | the tea is cold | a child laughs
A doctor works in a | hospital | stable | garage | lighthouse
A teacher works in a | school | bakery | mine | ship
A farmer works on a | farm | stage | plane | roof
A pilot flies a | plane | horse | bicycle | book
Students borrow books from the | library | pharmacy | stadium | zoo
People buy bread at the | bakery | station | museum | beach
When the traffic light is red, cars must | stop | turn over | go faster | honk
After it has rained, the street is | wet | dry | hungry | purple
Sugar tastes | sweet | salty | bitter | loud
A lemon tastes | sour | salty | warm | quiet
Snow feels | cold | hot | loud | sharp
A feather is | light | heavy | salty | loud
A stone is | hard | soft | wet | sweet
The baby cried because it was | hungry | a carpenter | made of glass | on television
She put on sunglasses because the sun was | bright | wet | quiet | late
He was late because he missed the | bus | soup | colour | song
They were happy because they won the | game | rain | dust | cold
"""

OPPOSITES = """
hot cold | big small | fast slow | old young | happy sad | day night | open closed | full empty | rich poor |
strong weak | early late | high low | black white | loud quiet
"""

CATEGORIES = {
    'an animal': 'dog cat horse cow tiger rabbit'.split(),
    'a fruit': 'apple banana orange cherry grape pear'.split(),
    'a colour': 'red blue green yellow purple brown'.split(),
    'a piece of furniture': 'table chair sofa bed desk wardrobe'.split(),
    'a vehicle': 'car bus train truck bicycle ship'.split(),
    'a piece of clothing': 'shirt coat hat jacket skirt sock'.split(),
    'a musical instrument': 'piano guitar violin flute drum trumpet'.split(),
}

PLURALS = 'child children childs childes childrens | mouse mice mouses mices mousen | foot feet foots feets footes'
PAST = 'go went goed gone going | eat ate eated eating eats | see saw seed seeing sees | take took taked taking takes'

INSTRUCTION_TOPICS = (
    'the sea', 'a cat', 'the moon', 'bread', 'winter', 'a bicycle', 'music', 'trees', 'a city', 'the rain',
)  # fmt: skip

# an answer that has none of these words is about something else
TOPIC_WORDS = {
    'the sea': 'sea seas ocean oceans wave waves water waters tide shore',
    'a cat': 'cat cats kitten feline whiskers purr purrs',
    'the moon': 'moon moons lunar moonlight',
    'bread': 'bread breads loaf loaves dough baked flour',
    'winter': 'winter winters snow snowy cold frost ice icy',
    'a bicycle': 'bicycle bicycles bike bikes wheels pedal pedals cycling',
    'music': 'music musical melody melodies song songs sound sounds',
    'trees': 'tree trees forest forests leaves branches',
    'a city': 'city cities town urban streets buildings',
    'the rain': 'rain rains rainy raindrops drops rainfall',
}
