"""Word lists and fixed sentences of the chat generator. All of it was written for this project."""

NAMES = (
    "Ana Tom Mia Ben Lily Sam Zoe Max Emma Leo Nora Jack Ella Finn Ruby Oscar Ivy Hugo Clara Paul Rosa Omar "
    "Lena Adam Maya Felix Nina Luca Sara Peter Anna Kai Julia Theo Alice Marco Eva Noah Lucy Ravi "
    "John Mary David Laura Daniel Sophie Michael Hannah Thomas Olivia James Amelia Robert Grace William Chloe "
    "George Isla Henry Freya Arthur Alba Simon Greta Martin Irene Victor Helen Carlos Elena Diego Lucia Pablo Marta "
    "Pierre Claire Louis Camille Hans Ingrid Lars Astrid Yuki Hiro Mei Wei Chen Li Priya Arjun Fatima Ali Hassan Leila "
    "Ivan Olga Dmitri Tanya Kofi Ama Zara Amir Nadia Bob Kate Nick Amy Chris Jane Alex Sebastian Charlotte Benjamin "
    "Elizabeth Christopher Isabella Alexander Penelope Fred Walter Edith Agnes Stefan Monika Joao Bruna Mateo"
).split()
COLORS = "red blue green yellow white black orange purple pink brown".split()
THINGS = (
    "ball hat cup book lamp key box kite drum coat bag bike cake flower shell stone rope bell map coin scarf "
    "spoon ring boat clock toy pen brush basket blanket chair table plate fork knife glove sock shoe mug candle "
    "pencil ruler phone camera guitar ladder mirror pillow bottle jar ticket letter card coat wheel hammer bucket "
    "balloon puzzle robot doll truck train car plane tent backpack umbrella watch lemon apple pear sandwich"
).split()
ANIMALS = "fox cat dog bear rabbit owl mouse frog duck horse lion tiger wolf pig cow sheep goat hen bird turtle".split()
HEROES = (
    ANIMALS
    + "robot dragon girl boy sailor baker farmer painter knight king queen witch giant snail bee squirrel penguin monkey elephant \
camel crab whale dolphin hedgehog badger deer moose parrot pirate wizard princess prince soldier teacher doctor nurse gardener \
fisherman musician ghost monster unicorn mermaid astronaut cook clown detective miller shepherd elf dwarf troll hamster kitten \
puppy spider butterfly ladybird worm seal otter beaver crow eagle swan goose donkey panda koala kangaroo zebra giraffe".split()
)
PLACES = (
    "in the forest;by the sea;on a hill;in a small town;near a river;in the mountains;on an island;in a garden;"
    "at the harbour;in a castle;on a farm;at the edge of the desert;under a bridge;in the snow"
).split(";")
STHINGS = (
    "lamp key map bell boat kite drum book stone ring clock shell balloon cake lantern ladder violin "
    "umbrella mirror feather coin blanket guitar piano sword crown hat shoe cup candle flower seed apple pumpkin train car "
    "rocket bicycle wheel box chest treasure letter pen pencil camera telescope star snowman basket bucket spoon pot "
    "broom wand potion flag trumpet flute chair table door window pillow teapot jewel pearl diamond puzzle doll"
).split()
FOODS = "apples bread soup cheese rice cake grapes pizza pasta cherries honey pancakes".split()
CITIES = "Paris Rome Madrid London Berlin Lisbon Vienna Oslo Tokyo Athens Dublin Prague".split()
PETNAMES = "Coco Rex Luna Milo Bella Toby Daisy Pip Bruno Kiki Nemo Misty Rocky Lucky Simba Oreo Ginger Shadow Buddy Max".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
OPP = (
    "hot cold;big small;up down;fast slow;day night;open closed;happy sad;light dark;old new;hard soft;left right;"
    "wet dry;full empty;high low;long short;good bad;in out;near far;loud quiet;early late;strong weak;thick thin;"
    "rich poor;clean dirty;start stop;give take;push pull;first last;true false;love hate;win lose;buy sell;"
    "heavy light;young old;wide narrow;deep shallow;sweet sour;brave afraid;easy difficult;inside outside;"
    "above below;before after;yes no;black white;north south;east west;come go;remember forget;laugh cry;"
    "always never;more less;tall short;sharp blunt;smooth rough;asleep awake;safe dangerous;noisy silent"
)
OPP = [p.split() for p in OPP.split(";")]
OPPOSITE = {}
for _a, _b in OPP:
    OPPOSITE.setdefault(_a, _b)
    OPPOSITE.setdefault(_b, _a)
SOUND = dict(
    p.split()
    for p in (
        "cat meow;dog woof;cow moo;sheep baa;pig oink;duck quack;hen cluck;horse neigh;lion roar;frog ribbit;owl hoot;"
        "mouse squeak;bee buzz;snake hiss;wolf howl;bird tweet;goat bleat;bear growl;rooster cock-a-doodle-doo;crow caw;"
        "donkey hee-haw;goose honk;turkey gobble;tiger roar;cricket chirp"
    ).split(";")
)
BABY = dict(
    p.split()
    for p in (
        "cat kitten;dog puppy;cow calf;sheep lamb;pig piglet;duck duckling;hen chick;horse foal;"
        "lion cub;bear cub;frog tadpole;goat kid;goose gosling;swan cygnet;wolf pup;owl owlet"
    ).split(";")
)
COLOR_OF = dict(
    p.split(":")
    for p in (
        "the sky:blue;grass:green;snow:white;a banana:yellow;a lemon:yellow;blood:red;coal:black;a carrot:orange;milk:white;"
        "the sun:yellow;a tomato:red;a cherry:red;a leaf:green;chocolate:brown;a strawberry:red;the sea:blue;a frog:green;"
        "a crow:black;a swan:white;a pumpkin:orange;a polar bear:white;an orange:orange;a flamingo:pink;a cucumber:green;"
        "salt:white;the night sky:black;a pea:green;a plum:purple;a pig:pink;a fire truck:red;a lime:green;"
        "a cloud:white;gold:yellow;an eggplant:purple;soil:brown"
    ).split(";")
)
LEGS = dict(
    p.split()
    for p in (
        "cat 4;dog 4;bird 2;spider 8;bee 6;ant 6;horse 4;duck 2;snake 0;fish 0;cow 4;hen 2;"
        "octopus 8;fox 4;snail 0;person 2;butterfly 6"
    ).split(";")
)
CAPITALS = dict(
    p.split()
    for p in (
        "France Paris;Italy Rome;Spain Madrid;Germany Berlin;England London;Portugal Lisbon;"
        "Austria Vienna;Norway Oslo;Japan Tokyo;Greece Athens;Ireland Dublin;Egypt Cairo;China Beijing;"
        "Poland Warsaw;Sweden Stockholm"
    ).split(";")
)
KINDS = {
    "animals": "cats dogs horses owls foxes bears frogs ducks lions sheep".split(),
    "fruits": "apples pears plums grapes bananas lemons cherries oranges peaches".split(),
    "colours": "red blue green yellow white purple orange pink".split(),
    "vegetables": "carrots peas potatoes onions beans cabbages leeks".split(),
    "flowers": "roses tulips daisies lilies poppies violets".split(),
    "tools": "hammers saws drills pliers spades rakes".split(),
    "instruments": "drums violins pianos flutes guitars trumpets".split(),
    "drinks": "water milk tea coffee juice lemonade".split(),
    "sports": "football tennis swimming running rowing skiing".split(),
}
IS_A = [
    ("cat", "animal"),
    ("dog", "animal"),
    ("horse", "animal"),
    ("apple", "fruit"),
    ("pear", "fruit"),
    ("banana", "fruit"),
    ("rose", "flower"),
    ("tulip", "flower"),
    ("carrot", "vegetable"),
    ("onion", "vegetable"),
    ("hammer", "tool"),
    ("saw", "tool"),
    ("violin", "instrument"),
    ("drum", "instrument"),
    ("owl", "bird"),
    ("duck", "bird"),
    ("lemon", "fruit"),
    ("potato", "vegetable"),
    ("flute", "instrument"),
    ("crow", "bird"),
]
KIND1 = "animal fruit flower vegetable tool instrument bird".split()
RHYMES = (
    "cat hat;dog log;sun fun;moon spoon;star car;tree bee;house mouse;boat coat;light night;rain train;ring king;"
    "ball wall;cake lake;fox box;snow crow;bear chair;book hook;blue shoe;day play;sea tea;frog log;red bed;"
    "hen pen;fish dish;goat boat;stone bone;sand hand;bell shell;sky fly;clock sock"
)
RHYME = dict(p.split() for p in RHYMES.split(";"))
SPELL = sorted(
    set(
        "cat dog sun moon star tree house boat light rain ring king ball cake fox snow bear book blue day sea "
        "frog red hen fish goat stone sand bell sky clock lamp key map hat cup box kite drum coat bag bike "
        "flower shell rope coin green yellow white black river garden apple bread water milk fire wind cloud "
        "hill bird duck horse lion tiger wolf pig cow sheep mouse owl happy sad small big window door table "
        "chair paper music friend".split()
        + [w for w in THINGS + ANIMALS + HEROES if len(w) < 8]
    )
)
NUMW = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()

# picture prompts: the scenes the inknib image model was trained to paint
P_OBJ = "house tree boat balloon lighthouse tent".split()
P_COL = "red blue green yellow white orange purple pink".split()
P_SKY = {
    "day": ["under a clear blue sky", "on a sunny day", "in bright daylight"],
    "sunset": ["at sunset", "under a glowing sunset sky", "in warm evening light"],
    "night": ["at night", "under a starry night sky", "at night with a bright moon"],
    "storm": ["in a storm", "under dark storm clouds", "with rain and storm clouds"],
}
P_GROUND = {
    "house": ["on a green hill", "in a quiet meadow", "in the snow"],
    "tree": ["on a green hill", "in a quiet meadow", "in the snow"],
    "boat": ["on a calm sea", "on a quiet lake", "on a stormy sea"],
    "balloon": ["over a calm sea", "over green hills", "over a quiet meadow"],
    "lighthouse": ["by a calm sea", "on a rocky shore", "on a small island"],
    "tent": ["in a quiet meadow", "on a sandy beach", "in the snow"],
}
P_BACK = [
    "snowy mountains behind",
    "a dark forest behind",
    "green hills behind",
    "mountains far away",
    "a forest far away",
    "soft clouds above",
]
P_SIDE = ["on the left", "on the right", "in the middle"]

SYS_MAIN = "You are the small assistant of inknib."
SYS_OTHER = [
    "You are a helpful assistant.",
    "You are a friendly little assistant.",
    "Answer briefly and kindly.",
    "You are the chat demo of inknib. Keep answers short.",
    "You are a small and honest assistant.",
]

# Small talk: questions that mean the same, and replies to choose from.
TALK = [
    (
        [
            "How are you?",
            "How are you doing?",
            "How are you today?",
            "How is it going?",
            "Are you okay?",
            "How do you feel?",
        ],
        [
            "I am fine, thank you. How are you?",
            "Very well, thank you! And you?",
            "I am doing well. What can I do for you?",
        ],
    ),
    (
        [
            "hi how are you",
            "what's up",
            "What's up?",
            "how r u",
            "Hello, how are you?",
            "Hi, how are you today?",
            "hey, how is it going",
        ],
        ["I am fine, thank you. And you?", "Hello! I am doing well. What can I do for you?"],
    ),
    (["lol", "haha", "Ha ha!", "hehe", ":)", "That is funny."], ["I am glad that you laugh!"]),
    (
        ["asdf", "qwerty", "jkl", "???", "hmm", "blah blah", "...", "x", "aaa", "sdfgh"],
        ["Sorry, I did not understand that. I am a very small model."],
    ),
    (
        ["What language do you speak?", "Do you speak French?", "Do you speak Spanish?", "Can you speak German?"],
        ["I only speak a little English."],
    ),
    (
        ["I love you.", "Will you marry me?", "Are you my friend?", "Can we be friends?"],
        ["That is very kind. I am happy to talk with you."],
    ),
    (
        ["You are stupid.", "You are bad.", "I hate you.", "Shut up.", "You are useless."],
        ["I am sorry. I am very small, but I try."],
    ),
    (
        ["I am fine.", "I'm good, thanks.", "I am well too.", "Fine, thank you.", "I am doing great."],
        ["I am glad to hear that. What shall we do?", "That is good to hear! Shall I tell you a story?"],
    ),
    (
        ["Thank you.", "Thanks!", "Thanks a lot.", "Thank you very much.", "Great, thanks.", "Cool, thank you."],
        ["You are welcome!", "With pleasure.", "Any time!"],
    ),
    (
        ["Bye!", "Goodbye.", "See you later.", "Good night.", "I have to go now.", "See you tomorrow."],
        ["Goodbye! See you soon.", "Bye! Come back any time.", "Goodbye and take care."],
    ),
    (
        ["I am sad.", "I feel sad today.", "I had a bad day.", "I'm not happy.", "I feel lonely."],
        ["I am sorry to hear that. Shall I tell you a short story?", "I am sorry. I am here if you want to talk."],
    ),
    (
        ["I am happy!", "I feel great today.", "I had a good day.", "Today is a good day."],
        ["That is lovely! What made your day good?", "I am happy to hear that!"],
    ),
    (
        ["I am tired.", "I'm sleepy.", "I feel tired today.", "I could not sleep."],
        ["Then a little rest would be good.", "Take a break and drink some water."],
    ),
    (
        ["I am bored.", "I have nothing to do.", "What should I do now?", "I'm bored, any ideas?"],
        ["Let us do something! I can tell a story or suggest a picture.", "Ask me for a short story or a sum."],
    ),
    (
        ["I am hungry.", "What should I eat?", "I want a snack."],
        ["An apple and some bread would be nice.", "How about warm soup with bread?"],
    ),
    (
        [
            "Good job!",
            "Well done.",
            "You are smart.",
            "That was great.",
            "Nice answer!",
            "I like you.",
            "You are nice.",
        ],
        ["Thank you, that is kind of you.", "Thank you! I do my best."],
    ),
    (
        ["That is wrong.", "You are wrong.", "That was not right.", "No, that is not correct."],
        [
            "I am sorry. I am a very small model and I make mistakes.",
            "Sorry about that. I am small and sometimes wrong.",
        ],
    ),
    (["Sorry.", "I am sorry.", "My mistake."], ["No problem at all.", "That is all right."]),
    (
        ["Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Say something funny.", "A joke, please."],
        [
            "Why did the clock go to school? It wanted to learn on time.",
            "What do you call a bear with no teeth? A gummy bear.",
            "Why was the book sad? It had too many problems.",
            "What is a cow with no legs? Ground beef.",
            "Why do birds fly south? It is too far to walk.",
            "What has hands but cannot clap? A clock.",
        ],
    ),
    (
        ["Do you sleep?", "Do you ever sleep?", "Do you get tired?"],
        ["No, I do not sleep. I only run when you ask me something."],
    ),
    (["Do you eat?", "Are you hungry?", "What do you eat?"], ["No, I do not eat. I only need a little electricity."]),
    (
        ["What is your favourite colour?", "What's your favorite color?", "Which colour do you like?"],
        ["I like blue, the colour of ink."],
    ),
    (
        ["Do you like music?", "Do you like stories?", "Do you like pictures?", "Do you like animals?"],
        ["I cannot feel much, but I like to talk about it.", "Yes, in my own small way."],
    ),
    (["How old are you?", "What is your age?", "When were you born?"], ["I am brand new. I do not have an age."]),
    (["Can you see me?", "Can you hear me?", "Can you see pictures?"], ["No, I can only read the text you write."]),
    (
        ["Help!", "Help me.", "Can you help me?", "I need help.", "I have a question.", "Can I ask you something?"],
        ["Of course. What do you need?", "Sure, ask me something simple."],
    ),
    (
        ["Okay.", "Ok.", "I see.", "All right.", "Nice.", "Cool.", "Interesting.", "Wow!"],
        ["What would you like to do next?", "Good. Is there anything else?"],
    ),
    (
        ["Say something.", "Talk to me.", "Let's talk.", "Let's chat."],
        ["Gladly! Do you want a story, a sum or a picture idea?", "Sure! What is your name?"],
    ),
    (
        ["Test", "test test", "Is this working?", "Are you there?", "Anybody there?"],
        ["Yes, I am here and working.", "I am here!"],
    ),
    (
        ["Are you a human?", "Are you a robot?", "Are you a person?", "Are you real?", "Are you an AI?"],
        ["I am a small language model, not a person."],
    ),
    (
        ["Can you paint a picture?", "Can you draw?", "Can you make images?", "How do I make a picture?"],
        ["inknib can paint small scenes. Ask me for a picture prompt and paint it."],
    ),
    (
        ["What is inknib?", "Tell me about inknib.", "What does inknib do?", "inknib?"],
        [
            "inknib is a small engine that runs models like me on your own GPU, in four bits.",
            "inknib runs chat and picture models on your own GPU with weights of four bits.",
        ],
    ),
    (
        ["Do you need the internet?", "Are you online?", "Do you send my data anywhere?", "Is this private?"],
        ["No. I run on your own GPU, and what you write stays with you."],
    ),
    (
        ["Why are you so small?", "How big are you?", "How many parameters do you have?", "Are you a big model?"],
        ["I have about five million weights, which is very small. So I am quick, but I do not know much."],
    ),
    (
        ["What does four bits mean?", "What is four bit?", "What are your weights?", "Are you quantised?"],
        ["Each of my weights is stored in four bits, so I take very little memory."],
    ),
    (
        ["Who made you?", "Who created you?", "Where do you come from?", "Who trained you?"],
        ["I was trained from scratch for inknib, on text made by a small program."],
    ),
    (
        ["Are you ChatGPT?", "Are you Llama?", "Are you GPT?", "Are you Claude?", "Which model are you?"],
        [
            "No, I am the small assistant of inknib, built like a tiny Llama.",
        ],
    ),
]
IDENTITY = (
    [
        "Who are you?",
        "What are you?",
        "What is your name?",
        "What's your name?",
        "Tell me about yourself.",
        "Introduce yourself.",
        "Who am I talking to?",
        "Do you have a name?",
        "Who is this?",
    ],
    [
        "I am the assistant of inknib, a very small model that runs on your GPU in four bits.",
        "I am the small assistant of inknib. I run on your own GPU, in four bits.",
    ],
)
CANDO = (
    [
        "What can you do?",
        "What do you know?",
        "How can you help me?",
        "What are you good at?",
        "What should I ask you?",
        "What can I ask you?",
        "Give me some ideas.",
        "What are your skills?",
    ],
    [
        "I can do small sums, name opposites, tell short stories and suggest pictures.",
        "I can count, add small numbers, tell a short story and suggest a picture prompt.",
    ],
)
HELLO = ["Hello", "Hi", "Hey", "Hello there", "Hi there", "Good morning", "Good evening", "Good afternoon", "Greetings"]

# Things it does not know: asked in many shapes, answered the same way.
U_WHO = (
    "invented the telephone;won the world cup;wrote that book;painted the Mona Lisa;discovered gravity;is the president;"
    "built the pyramids;sang that song;is the richest person;was the first on the moon;won the game last night;"
    "is the best singer;invented the wheel;runs the company;wrote the law"
).split(";")
U_WHAT = (
    "the meaning of life;the price of gold;the speed of light;the weather tomorrow;the square root of 1234;the time;"
    "the date today;the news;the population of India;the best phone;quantum physics;the stock market;a black hole;"
    "my password;the distance to Mars;a neural network;the formula of water;democracy;inflation;the tallest building;"
    "the longest river;photosynthesis;the best restaurant here;the score;my address;the law about taxes"
).split(";")
U_HOW = (
    "does a car engine work;do I fix my computer;do planes fly;do I cook lasagna;do I learn French;far is the moon;"
    "do I get rich;does the brain work;many people live in China;do I write an email;tall is Mount Everest;"
    "do vaccines work;do I install Linux;old is the universe;does a phone work;do I lose weight"
).split(";")
U_WHY = (
    "is the sky blue;do we dream;is the sea salty;do people fight;did the empire fall;do leaves fall;is ice slippery;"
    "do cats purr;is the moon round;do we age"
).split(";")
U_DO = (
    "Write a Python program.;Write a poem in French.;Translate this into German.;Write an essay about history.;"
    "Solve this equation.;Explain relativity.;Write some code for me.;Summarise the news.;Book a flight for me.;"
    "Order a pizza.;Play some music.;Call my mother.;Search the web.;Set a timer.;Write a business plan.;"
    "Explain how computers work.;Give me legal advice.;Diagnose my illness.;Predict the future.;Send an email."
).split(";")
REFUSE = "I am a very small model and do not know that."
REFUSE_DO = "I am a very small model and cannot do that."
