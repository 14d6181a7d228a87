"""A bundled sample corpus: SYNTHETIC domain names, made up here to look like registered ones.

None of them was taken from a zone file or any other list, and one that happens to be registered is so by chance.
They imitate what people register: compounds of words in a dozen languages, place and trade, personal names, coined
brands, misspellings, acronyms, numbers, a few IDNs, under suffixes with a long tail (about 54 % are ``.com``).

A suffix is drawn first, then a language that goes with it, then one of that language's patterns: blank-separated
tokens, joined with or without hyphens. A capital stands for a word of that class (see ``_make``), all else for itself.
Only ``Random.random`` is used, so that the same seed gives the same names everywhere.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from random import Random

SAMPLE = "sample"  # what --dataset calls it
# Suffixes and their weights, by the mix of languages seen under them.
_SUFFIXES = {
    "world": """com 7600 net 440 info 170 eu 120 online 130 site 75 store 85 club 45 us 75 co 75 biz 50 me 42 live 28
        pro 32 website 20 space 20 life 22 world 14 today 12 group 10 link 12 blog 14 art 16 work 12 mobi 8 name 6
        cc 26 tv 16 asia 7 ltd 8 company 8 email 6 network 6 center 7 guru 4 news 7 zone 5 fun 20 one 14 li 5 ae 8
        co.za 42 co.il 10 sg 5 hk 6 my 6 ie 10 cz 48 sk 14 gr 16 hu 18 ro 18 fi 14""",
    "english": "co.uk 250 uk 60 ca 100 com.au 130 au 32 co.nz 25 nz 6 org.uk 26 in 95 co.in 18 net.au 8 me.uk 6",
    "trade": "shop 140 agency 14 services 10 design 12 studio 14 photography 6 solutions 9 consulting 5 clinic 3 law 3",
    "cheap": "xyz 190 top 130 icu 36 vip 35 click 22 win 10 bid 5 cyou 12 sbs 14 buzz 12 cfd 8 bond 6 lol 6 pw 5",
    "tool": "io 75 app 60 dev 45 ai 50 tech 40 cloud 30 digital 14 software 3 systems 5 so 3 gg 8",
    "cause": "org 380 foundation 4 ngo 2 org.au 8",
    "es": "es 66 com.mx 24 mx 14 com.ar 22 cl 22 com.co 11 pe 6",
    "de": "de 500 at 45 ch 70 berlin 5 gmbh 2",
    "fr": "fr 120 paris 2",
    "it": "it 115",
    "nl": "nl 200 be 55 amsterdam 2",
    "pt": "com.br 140 pt 14 net.br 4",
    "ru": "ru 190 su 5 com.ua 16 by 6",
    "pl": "pl 82 com.pl 20",
    "sv": "se 52 dk 45 no 28 nu 8",
    "zh": "cn 180 com.cn 45 com.tw 16 net.cn 4",
    "ja": "jp 46 co.jp 14",
    "tr": "com.tr 20",
}
# The languages under a suffix; without an entry here, mostly the one that the suffixes go by.
_MIXES = {
    "world": "en 650 coin 150 zh 58 es 34 de 26 fr 26 it 16 pt 17 nl 8 ru 8 ja 10 tr 12 hi 22 sv 4 pl 4",
    "english": "en 86 coin 9 hi 5",
    "trade": "en 60 coin 12 de 8 es 6 fr 6 it 4 hi 4",
    "cheap": "coin 36 en 34 zh 22 tool 8",
    "tool": "tool 55 coin 22 en 23",
    "cause": "cause 60 en 20 coin 10 es 4 fr 3 de 3",
}
# How many names in a hundred have hyphens between their words; 10 in the other languages.
_HYPHENS = {"en": 10, "de": 42, "fr": 32, "ru": 30, "pl": 24, "ja": 26, "zh": 4, "pt": 6, "tr": 5}
_PATTERNS = {
    "en": """N N 112 | A N 80 | N S 66 | C T 58 | N T 48 | A T 34 | L T 40 | F L 56 | A N S 42 | N N S 38 | T C 12 | N 6
        | the A N 18 | the N N 16 | my N N 14 | my N 5 | V N 12 | V A N 9 | A P 30 | N P 28 | V P 8 | F N 8 | best T C 5
        | best P 3 | C N 14 | C P 12 | A N T 26 | N and N 18 | P by F 7 | L and L 7 | L S 14 | L and sons 4 | I L 6
        | Fs N 8 | F L T 22 | law offices of F L 4 | L family N 6 | dr F L 4 | N D 18 | N N D 13 | D N 16 | D P 5
        | A N D 10 | D T 5 | D C T 4 | C D 4 | F L D 7 | N 4 you 4 | N 2 go 2 | P 4u 3 | Z 9 | Z N 8 | N Z 9 | Z S 6
        | H N 14 | H S 10 | H T 12 | e N 5 | A C T 18 | C A T 14 | C T S 16 | C N N 8 | N of C 6 | C N and N 9
        | all about P 4 | how to V P 3 | V your N 6 | we V P 5 | your N T 9 | your A N 7 | your C T 7 | A and A N 6
        | house of P 3 | pure N 4 | N N T 40 | A N N 44 | F and F 7 | F and F wedding 4 | B T 8 | L N N 7 | K T 6
        | K N 4 | A N T S 12 | C T and T 10 | L T and T 8 | homes for sale in C 2 | things to do in C 2 | U 3
        | the best T in C 3 | affordable T services in C 3""",
    "coin": """B 260 | M 120 | K 100 | Q 74 | Z 50 | B S 90 | M S 30 | K S 60 | K D 12 | B D 10 | J 26 | W 40 | H M 20
        | H B 14 | K T 16 | B T 12 | K and K 3 | get B 5 | my B 6 | Q S 6 | K C 10 | K Q 9 | B L 4""",
    "cause": """C O 30 | N O 24 | A N O 12 | L O 12 | F L O 5 | save the P 4 | friends of C 5 | N for N 5 | K 16
        | st F O 4 | P for N 5 | P without borders 2 | C T 3 | C N O 12 | A O 8 | K C 4 | first O 3 | open N 6
        | world N day 2 | D P 2 | V for N 3 | C D 4 | N action 3 | A C 4 | our N 3 | the F and F L O 3""",
    "tool": """B 22 | N 10 | M 18 | N S 16 | N N 24 | get N 6 | try B 4 | use N 4 | A N 14 | N kit 5 | N ly 6 | N flow 5
        | N stack 4 | N base 4 | N bot 5 | N ai 8 | ai N 6 | Z 8 | H N 8 | F L 10 | F 4 | N ops 2 | N pad 2 | N wise 2
        | D N 5 | N D 4 | open N 3 | K 8 | N sync 3 | go N 3 | dev F 2 | F dev 3 | B labs 4 | B ai 4""",
    "de": """N T 30 | N N 24 | C T 14 | T C 20 | T L 30 | L T 14 | F L 34 | A N 12 | N S 12 | N C 14 | N 10 | mein N 5
        | ferienwohnung C 4 | L und L 3 | dein N 4 | N D 12 | D N 4 | praxis L 5 | praxis dr L 4 | kanzlei L 3
        | hotel N 4 | familie L 3 | L gmbh 3 | A T 6 | K C 5 | tsv C 2 | feuerwehr C 2 | U 6 | U T 3 | N und N 4
        | L N T 4 | N N T 5 | C N 5 | I L 3 | kfz L 2 | N profi 3 | N welt 4 | B 6""",
    "es": """N T 16 | N A 24 | T L 12 | F L 26 | T C 20 | la N 6 | el N 3 | N de N 7 | casa N 8 | N S 14 | mi N 7
        | tu N 7 | N y N 5 | grupo L 7 | grupo B 4 | N D 9 | todo N 5 | hotel N 4 | C N 6 | N C 8 | T A 10 | clinica L 4
        | N N 14 | mundo N 4 | N 8 | B 8 | U 2 | la casa de N 2 | estudio B 3 | N L 4""",
    "fr": """N T 10 | T L 14 | F L 28 | T C 20 | la N 6 | les Ns 5 | N et N 8 | N de N 6 | N S 8 | mon N 7 | N A 16
        | A N 8 | C N 6 | N C 12 | gite N 4 | cabinet L 5 | garage L 4 | L T 9 | atelier N 6 | atelier de F 4 | chez F 4
        | domaine L 3 | les Ns de F 5 | N D 8 | hotel N 3 | N N 8 | B 7 | K C 3 | N 6 | U 3""",
    "it": """N A 18 | F L 30 | studio L 14 | T L 16 | T C 14 | N T 8 | la N 8 | il N 6 | casa N 8 | N S 12
        | agriturismo N 5 | studio legale L 5 | villa N 6 | L T 12 | N di F 4 | N D 8 | C N 6 | N C 10 | tutto N 5
        | hotel N 5 | B 10 | N N 10 | da F 3 | N e N 5 | autofficina L 2 | N 6 | I L 3""",
    "nl": """N T 32 | N N 22 | C T 12 | T C 16 | T L 12 | F L 22 | de N 10 | het N 5 | de A N 6 | A N 14 | L T 10
        | N S 16 | mijn N 5 | N D 7 | D N 3 | van L 3 | N en N 7 | N C 10 | praktijk F 3 | B 8 | F T 6 | alles over N 2
        | N winkel 6 | N groep 3 | jouw N 4 | N 6 | F en F 3 | N N T 4""",
    "pt": """N T 12 | N A 24 | F L 24 | T L 8 | T C 10 | loja N 8 | casa N 9 | N S 14 | grupo B 5 | meu N 7 | N D 8
        | N e N 6 | N brasil 10 | T B 9 | N do F 3 | N N 16 | clinica L 4 | N C 6 | mundo N 5 | B 12 | N da F 3
        | L advogados 4 | dr F L 3 | instituto N 3 | portal N 4 | K T 4 | N 6""",
    "zh": """N N 110 | N N N 40 | W 56 | C N N 20 | N N D 20 | Q 40 | W D 14 | C W 8 | N N S 12 | N S 12 | K D 8 | W S 6
        | C N 8 | Q W 4 | N Q 8 | N N N N 10 | U 7 | wo N N 2 | i N N 3 | N N wang 5""",
}
_OTHER_PATTERNS = "N T 26 | N N 16 | T C 12 | C T 8 | F L 20 | L T 12 | N S 10 | A N 10 | N C 8 | B 10 | N D 8"
# The words by class, the commoner ones first; a class that a language lacks is English. Noun, Plural, Adjective, Trade,
# Suffixed word, Verb, First and Last name, City, Organisation, Head of a compound, Digits, with Umlauts and the like;
# X, Y and G are the onset, the vowel and the coda of coined syllables, E the endings put on a stem.
_WORDS = {
    "en": """N home life web world house art health care city car food travel design money book music pet land star game
        fit power light market water garden sun play energy green fashion kid baby dog day job time school body wine
        coffee style hair beauty skin business mind sport trade family data club farm cloud solar gold tree stone
        river mountain ocean bike boat truck fire earth air sky moon wood leaf rose dream heart hand eye soul love gift
        card box bag toy key door window room kitchen bath floor roof wall paint tool craft paper print ink pixel code
        byte bit logic link line point path way road bridge gate port bay beach island lake forest field valley hill
        rock sand wave wind storm rain snow ice summer winter spring bird cat horse fish bear wolf fox lion eagle hawk
        owl bee butterfly dragon phoenix tiger rabbit duck bread cake pizza burger taco sushi cheese milk honey tea beer
        spice salt sugar chocolate candy cookie pepper lemon berry cherry peach mango olive coconut banana vegan organic
        recipe chef plate fork spoon cup bottle barrel brew grill smoke table chair sofa bed pillow blanket
        lamp candle mirror frame carpet curtain tile brick steel metal iron copper silver diamond pearl jewel ring crown
        watch clock shirt shoe boot hat dress sock jacket leather silk cotton thread needle stitch button fabric vintage
        trail camp tent hike climb ski surf swim run yoga gym muscle golf tennis soccer hockey poker chess dance song
        guitar piano drum band radio sound beat vinyl film movie video camera lens studio stage theater story poem word
        letter pen pencil note page journal novel author reader library history science math brain nerve bone tooth
        smile vision sleep breath spirit angel grace faith hope peace joy luck wisdom truth bank fund cash coin credit
        loan mortgage tax stock invest wealth asset capital equity budget wallet profit office desk team staff leader
        coach mentor partner expert doctor nurse teacher student lawyer agent broker engineer builder maker hunter rider
        driver pilot captain sailor farmer baker brewer painter writer king queen knight prince ninja pirate hero wizard
        giant robot rocket planet orbit comet galaxy space atom laser crystal magnet spark flame ember echo oak
        P homes books cars shoes bikes gifts toys tiles games beds lamps tools boats dogs cats pets pens meals
        plants deals tickets flowers cakes cookies recipes rings watches hats bags boots shirts jeans chairs doors
        windows floors walls rugs photos stories songs movies dreams ideas trips tours trails parks farms trees gardens
        lakes mountains horses birds tents trucks tires parts phones apps pixels letters cards prints posters wines
        A smart green blue best new easy first great global true red big little golden happy bright digital royal modern
        fresh fast free pure simple clear natural local urban total super perfect prime american silver
        creative active healthy good better clean safe secure quick real sweet wild lucky grand high old young united
        northern southern western eastern pacific atlantic central national premier elite ultimate advanced precision
        quality affordable professional express instant daily direct open classic vintage rustic cozy luxury fancy magic
        T plumbing dental law roofing realty realestate construction design consulting cleaning photography catering
        insurance homes landscaping fitness marketing solutions painting flooring heating electric accounting motors
        properties therapy yoga salon wellness medical chiropractic carpentry builders remodeling movers storage
        security solar pools fencing lawyers dentists florist flowers bakery pizza events weddings limo taxi towing
        tours travel rentals apartments mortgage finance tutoring academy preschool daycare veterinary grooming kennels
        counseling pilates acupuncture orthodontics dermatology optical pharmacy hearing surgery engineering architects
        S online shop group tech media hub store web world club design pro net lab labs studio zone app blog direct usa
        solutions life services digital global systems market place spot box space now city house network mart live
        V get go try buy find ask love shop meet sell learn play build save join visit call hire book rent cook eat fix
        make grow click follow discover explore choose think start share trust drive ride send order create live watch
        F john david mike mary anna sarah james robert chris michael paul lisa laura maria mark alex daniel emma kate
        tom peter susan julie karen linda amy jessica emily kevin brian steve scott eric jason matt andrew ryan ben sam
        joe jack luke adam nick tim greg jeff dan rob bill jim bob ken ron don gary larry jenny rachel rebecca megan
        L smith johnson williams brown jones miller davis wilson anderson taylor thomas moore martin jackson white
        harris clark lewis robinson walker young allen king wright scott hill green adams baker nelson carter mitchell
        roberts turner phillips campbell parker evans edwards collins stewart morris murphy cook rogers morgan cooper
        peterson reed bailey bell kelly howard ward cox richardson wood watson brooks bennett gray james hughes price
        C austin london dallas denver chicago boston miami houston seattle texas new-york atlanta florida phoenix
        san-diego portland toronto california las-vegas orlando tampa nashville charlotte sydney melbourne brisbane
        perth dublin manchester bristol leeds glasgow edinburgh cardiff oxford cambridge brighton york bath liverpool
        birmingham sheffield nottingham kent surrey devon cornwall vancouver calgary ottawa montreal auckland wellington
        dubai singapore mumbai delhi bangalore cape-town colorado arizona ohio michigan georgia utah oregon montana
        O foundation church society association project trust alliance community school council museum network institute
        center fund ministries initiative library academy choir coalition union theatre club guild volunteers youth
        H eco agri medi bio geo nano tele info euro auto aero hydro neuro fin edu immo cryo techno inno omni multi
        D 24 1 365 2 247 360 123 88 99 24h 7 3d 101 3 2024 4 5 2023 2025 21 8 10 911 777 9 12 2000 6 100 1000 2022
        U café cafés décor façade crème purée piñata jalapeño naïve fiancé résumé soirée über björk zoë chloé noël
        X l v n r m s t k d z b p f c g tr br h j pl x st w kr cl fl qu y sp gr sh dr th gl zh
        Y a o i e u a e o i ia y ea oo eo ai io ou ee au G n r x s l nt nd m sk lt rk z xt ck
        E ify ly ora ia io ista er ex ium era ella ova on ix eo able ana iq oria ology ery ity aro ent us ling wise ster
        ique ara ino etto onic istic izer mate""",
    "de": """N haus garten auto holz berg wasser kinder stadt markt reise reisen welt kunst bau wein energie licht land
        leben freizeit hof wald see sonnen gesundheit pflege tier hunde katzen pferde musik buch bilder foto moebel
        kuechen bad fenster tueren dach metall stahl stein glas farben papier druck A neue alte gute schoene kleine
        grosse gruene freie junge sichere bunte echte T shop service handwerk werkstatt schule praxis zentrum verein
        technik beratung bau haus verlag design immobilien coaching physiotherapie zahnarzt rechtsanwalt steuerberater
        malerbetrieb tischlerei schreinerei elektrotechnik dachdecker sanitaer heizungsbau gartenbau fahrschule F thomas
        michael andreas peter stefan christian martin frank klaus juergen anna julia sabine petra monika L mueller
        schmidt schneider fischer weber meyer wagner becker schulz hoffmann koch bauer richter klein wolf schroeder
        neumann schwarz zimmermann braun krueger hofmann hartmann lange schmitt werner C berlin hamburg muenchen koeln
        frankfurt stuttgart duesseldorf leipzig dresden hannover nuernberg bremen wien zuerich basel bern graz salzburg
        linz tirol bonn U müller bücher möbel küchen büro schön köln münchen gärtnerei""",
    "es": """N casa vida mundo sol mar luz tienda moda salud agua arte viajes libros tierra ciudad campo rio flor cielo
        luna estrella amor familia hogar cocina sabor cafe vino pan fruta fuego piedra madera oro plata hierro coche
        moto A nueva buena verde azul real digital natural bonita grande libre rapido T abogados clinica dental
        inmobiliaria construcciones reformas hotel restaurante transportes seguros muebles viajes eventos academia
        farmacia floristeria panaderia ferreteria F maria jose juan carlos ana luis antonio javier miguel pedro laura
        carmen manuel francisco pablo L garcia lopez martinez gonzalez rodriguez fernandez sanchez perez gomez martin
        jimenez ruiz hernandez diaz C madrid barcelona valencia sevilla mexico bogota lima chile malaga bilbao zaragoza
        U españa niño señor mañana jardín corazón cafetería""",
    "fr": """N maison jardin vie monde art soleil mer bois eau terre ville marche mode sante cuisine vin pain fleur
        lumiere nature montagne plage ile foret pierre fer or argent voiture moto velo route pont port chemin rose
        lavande A petit grand bon bleu vert rouge belle nouveau jolie vrai blanc noir direct T immobilier avocat
        plomberie menuiserie coiffure restaurant boulangerie traiteur fleuriste architecte paysagiste electricite
        peinture renovation construction maconnerie F marie pierre jean sophie julie claire camille nicolas thomas
        julien antoine philippe michel L martin bernard dubois thomas robert richard petit durand leroy moreau simon
        laurent lefebvre michel garcia C paris lyon marseille bordeaux toulouse nantes lille nice strasbourg montpellier
        rennes U café santé beauté bébé école élégance crêperie""",
    "it": """N casa vita mondo sole mare luce arte moda salute acqua terra cielo luna stella amore cuore fiore rosa
        giardino bosco monte valle lago fiume isola porto ponte piazza borgo torre castello cucina gusto pane vino caffe
        olio A bella nuova verde blu bianca rossa antica vera facile libera italiana T immobiliare ristorante pizzeria
        costruzioni impianti arredamenti trasporti assicurazioni viaggi fotografia edilizia falegnameria serramenti
        ceramiche carrozzeria autonoleggio F marco andrea luca giuseppe francesco antonio paolo matteo alessandro davide
        stefano roberto L rossi russo esposito bianchi romano colombo ricci marino greco bruno gallo conti costa
        giordano mancini rizzo C milano roma torino napoli firenze bologna venezia genova verona palermo padova""",
    "nl": """N huis tuin auto hout water kinder stad markt reis wereld kunst bouw wijn energie licht land leven zorg
        dier honden katten paarden muziek boek beeld foto meubel keuken bad ramen deuren dak staal steen glas verf
        papier druk A nieuwe oude goede mooie kleine grote groene vrije jonge slimme echte verse T winkel advies bouw
        praktijk coaching makelaars schilders timmerwerken hoveniers installatie techniek schoonmaak administratie
        fotografie fysiotherapie tandarts kapper bakkerij F jan peter henk kees piet johan willem marieke anouk sanne
        lotte eva emma tim bas daan sven ruud L dejong jansen devries bakker visser smit meijer mulder bos vos peters
        hendriks dekker brouwer dewit dijkstra C amsterdam rotterdam utrecht denhaag eindhoven groningen tilburg""",
    "pt": """N casa vida mundo sol mar luz loja moda saude agua arte viagem livros terra cidade campo rio flor lua ceu
        estrela amor familia lar cozinha sabor cafe vinho pao fruta fogo pedra madeira ouro prata ferro carro moto
        caminho A nova boa verde azul real digital natural linda livre rapido facil total T advogados clinica
        odontologia imobiliaria construtora engenharia transportes seguros moveis turismo eventos contabilidade farmacia
        confeitaria arquitetura fotografia psicologia F maria jose joao ana carlos paulo pedro lucas marcos rafael bruno
        felipe gabriel juliana fernanda L silva santos oliveira souza lima pereira ferreira costa rodrigues almeida
        nascimento alves carvalho araujo C sao-paulo rio curitiba bahia recife fortaleza brasilia santos natal""",
    "pl": """N dom ogrod sklep auto drewno woda dzieci miasto rynek swiat sztuka meble energia zdrowie zycie kuchnia
        kawa A nowy dobry zielony maly zloty polski zdrowy tani moje T sklep serwis bud tech budowa nieruchomosci
        adwokat stomatologia fotografia transport kancelaria F anna piotr jan tomasz pawel marcin michal kasia magda ewa
        adam L nowak kowalski wisniewski wojcik kowalczyk kaminski lewandowski zielinski C warszawa krakow wroclaw
        poznan gdansk lodz szczecin lublin katowice""",
    "ru": """N dom mir stroy auto les voda svet sad deti gorod rynok moda remont mebel okna dveri krovlya metall stal
        kamen A novyi russkiy bely zeleny krasny zoloto nash svoi T servis stroy market master snab torg invest dom
        tehno remont grupp centr service trans proekt F anna olga elena ivan alexey sergey dmitry natalia irina maxim L
        ivanov petrov smirnov kuznetsov popov sokolov lebedev kozlov novikov C msk spb moskva ural sochi kazan sibir
        samara nn kuban krym baikal omsk""",
    "sv": """N hus bygg bil skog sjo strand berg sten vatten barn stad natur liv hem kok mat vin kaffe brod fisk hund
        hest A nya gamle grona stora lilla gode norske svensk dansk T service bygg konsult consult design maleri teknik
        elteknik transport fastigheter redovisning F anna erik lars karin johan maria anders peter eva nils ole hanne L
        andersson johansson karlsson nilsson eriksson larsson olsson hansen jensen C stockholm goteborg malmo uppsala
        oslo bergen kobenhavn aarhus odense lund""",
    "zh": """N hua jin zhong xin da hai long tian yi ming feng shang yuan guang wei cheng tong hong sheng bao fu li mei
        jia ke bo ying xing ren he an dong nan xi bei shi hui yun qi lian ai tai ding ze rui lu shan S tech group china
        cn mall trade net steel chem pharm C beijing shanghai guangzhou shenzhen hangzhou nanjing suzhou chengdu wuhan D
        88 168 66 123 8 99 520 888 365 518 58 51 U 中国 商城 上海 北京 科技 网络 汽车 旅游 教育 健康""",
    "ja": """N sakura yama kawa hana sora umi mori kaze hoshi tsuki niwa machi ie kodomo neko inu tori sakana kome mizu
        ocha T shika clinic kensetsu kogyo denki shokuhin sangyo fudosan dental koumuten seikei design jimusho ya F yuki
        haruka kenji takashi akira yoko naoko hiroshi satoshi ayumi L sato takahashi tanaka watanabe ito yamamoto
        nakamura kobayashi kato yoshida C tokyo osaka kyoto nagoya sapporo fukuoka kobe yokohama okinawa U 東京 大阪""",
    "tr": """N ev yapi su deniz gunes yildiz ay altin gul cicek bahce dunya hayat saglik spor oyun kitap yol kale dost A
        yeni guzel mavi yesil ak kara buyuk oz ucuz T insaat emlak nakliyat mobilya otomotiv tekstil turizm makina
        elektrik gida sigorta mimarlik hukuk F mehmet ahmet ali mustafa ayse fatma emre can murat elif zeynep L yilmaz
        kaya demir celik sahin yildiz ozturk aydin arslan dogan C istanbul ankara izmir antalya bursa adana ege""",
    "hi": """N om krishna ganesh shakti surya amrit anand prem jyoti lakshmi sagar ganga himalaya bharat desh gyan seva
        T exports textiles jewellers industries academy classes tours travels hospital enterprises infotech F raj amit
        priya rahul neha anil sunil pooja vijay sanjay deepak L sharma patel singh kumar gupta verma reddy mehta shah
        jain agarwal rao nair C mumbai delhi bangalore pune chennai hyderabad jaipur goa kerala punjab""",
}
_MISSPELLINGS = ("er$ r", "c(?=[aou]) k", "s$ z", "i y", "ck$ k", "e$ ", "ee i", "x xx", "oo u", "ou oo", "$ z", "$ r")
_LETTERS = "sacmtpdbirlenghfojkvwxzquy"
_INITIALS = "zhjxslygdcbtwqfmknrp"  # Of Chinese syllables.
_DIGITS = "8619532074"
_UNWANTED = re.compile("sex|porn|nazi|fuc?k|shit|cunt|rape|kkk|nig(?!h)|fag|slut|put[ao]|anal(?!y)|whitepow|^a?ss$")

Table = tuple[list[str], list[int]]  # Items, and their weights added up.


def _table(text: str) -> Table:
    """Read ``item weight | item weight``; the bars can be left out where no item has a blank."""
    entries = text.split("|") if "|" in text else re.findall(r"\S+\s+\d+", text)
    items, weights = zip(*(entry.rsplit(maxsplit=1) for entry in entries), strict=True)
    return [item.strip() for item in items], list(accumulate(map(int, weights)))


def _classes(text: str) -> dict[str, list[str]]:
    """Read ``A word word B word``: capitals, each with the words that follow it."""
    return {capital: words.split() for capital, words in re.findall(r"\b([A-Z])\b([^A-Z]+)", text)}


def _weighted(rng: Random, table: Table) -> str:
    items, sums = table
    return items[bisect_right(sums, rng.random() * sums[-1])]


def _pick(rng: Random, words: Sequence[str]) -> str:
    """Pick a word, an early one more often: a product of two uniform draws falls off much as word counts do."""
    return words[int(rng.random() * rng.random() * len(words))]


def _string(rng: Random, characters: Sequence[str], shortest: int, longest: int) -> str:
    length = shortest + int(rng.random() * (longest - shortest + 1))
    return "".join(_pick(rng, characters) for _ in range(length))


_SUFFIX_TABLES = {mix: _table(text) for mix, text in _SUFFIXES.items()}
_MIX_TABLE = (list(_SUFFIX_TABLES), list(accumulate(sums[-1] for _, sums in _SUFFIX_TABLES.values())))
_LANGUAGE_TABLES = {mix: _table(_MIXES.get(mix, f"{mix} 78 coin 12 en 10")) for mix in _SUFFIXES}
_CLASSES = {code: _classes(text) for code, text in _WORDS.items()}
_PATTERN_TABLES = {code: _table(_PATTERNS.get(code, _OTHER_PATTERNS)) for code in _WORDS | _PATTERNS}


def _make(rng: Random, kind: str, words: dict[str, list[str]]) -> str:
    """A word of a class: made up if the class is one of these, else one of the listed words."""
    match kind:
        case "B":  # A brand of coined syllables: kelora, vamix.
            count = 2 + int(rng.random() * 1.4)
            syllables = [_pick(rng, words["X"]) + _pick(rng, words["Y"]) for _ in range(count)]
            return "".join(syllables) + (_pick(rng, words["G"]) if rng.random() < 0.6 else "")
        case "M":  # A stem and an ending: lightora, clearify.
            return _pick(rng, words["A" if rng.random() < 0.4 else "N"]).rstrip("aeiouy") + _pick(rng, words["E"])
        case "Z":  # A word misspelt: flowr, kards.
            pattern, _, repl = _pick(rng, _MISSPELLINGS).partition(" ")
            return re.sub(pattern, repl, _pick(rng, words["A" if rng.random() < 0.3 else "N"]))
        case "I":  # An initial.
            return _pick(rng, _LETTERS)
        case "K":  # An acronym.
            return _string(rng, _LETTERS, 2, 4)
        case "W":  # Initials of a Chinese name, or letters chosen for being free.
            return _string(rng, _INITIALS, 4, 6)
        case "Q":  # A number.
            return _string(rng, _DIGITS, 3, 7)
        case "J":  # Junk, as registered in bulk.
            return _string(rng, _LETTERS, 1, 3) + _string(rng, _DIGITS, 1, 3) + _string(rng, _LETTERS + _DIGITS, 1, 4)
    return _pick(rng, words[kind])


def _names(rng: Random) -> Iterator[str]:
    seen = set()
    while True:
        mix = _weighted(rng, _MIX_TABLE)
        suffix = _weighted(rng, _SUFFIX_TABLES[mix])
        code = _weighted(rng, _LANGUAGE_TABLES[mix])
        words = _CLASSES["en"] | _CLASSES.get(code, {})
        tokens = _weighted(rng, _PATTERN_TABLES[code]).split()
        parts = [_make(rng, token[0], words) + token[1:] if token[0].isupper() else token for token in tokens]
        label = "-".join(parts)
        if rng.random() * 100 >= _HYPHENS.get(code, 10):
            label = label.replace("-", "")
        if not label.isascii():
            label = "xn--" + label.encode("punycode").decode()
        name = f"{label}.{suffix}"
        if len(label) <= 63 and len(set(parts)) == len(parts) and not _UNWANTED.search(label) and name not in seen:
            seen.add(name)
            yield name


def sample_names(count: int = 30_000, seed: int = 0) -> list[str]:
    """Return ``count`` unique synthetic names; a smaller count gives the beginning of the same list."""
    return list(islice(_names(Random(seed)), count))
