/* pair.pml: two nodes, one block, a link, and the cluster record that changes by compare-and-swap only.
 *
 * The rules are those of failover/doc.go and of section 5 of the design (the numbers in brackets). Whatever may happen is one
 * guarded step below, taken in any order: `g_x(n)` says when node n may take it, `a_x(n)` what it does. RESULTS.md has the runs.
 *
 * What is checked, in every state that can be reached:
 *   S1  a read by a node that serves is never older than what was acknowledged or read before (values only grow)
 *   S2  never two nodes that may serve in the same instant
 *   S4  every node in the record's set holds every acknowledged write
 *   S5  two members with nothing under way between them are equal
 *   S6  with -DVOLATILE: what a FLUSH was acknowledged for is on the medium of every member
 *   S8  with -DGENERATIONS: the only member of the set carries the record's generation, or it could never begin [8]
 *   S7  with -DLIVE: from every state, once the faults stop, a fair schedule ends with somebody serving, whatever epoch it takes
 * A violation is an assert of the number's negation, so that pan's output names it. -DCHECK=n leaves of S1 to S5 only Sn.
 *
 * Bounds (-DNAME=n): MAXV writes, MAXEP the highest epoch that anybody claims while there are faults; budgets of faults: CR crashes
 * of an agent, HC power losses of a host (with -DVOLATILE its cache is lost), CU link cuts, TO answers of the witness that do not
 * come (the CAS may still land, at any later time or never), FZ freezes that end in a demotion, DE disk errors, HO planned moves.
 * A budget of ANY is any number of them.
 *
 * -DW_x takes one rule away or reads it wrongly; each has to be refuted, or the model could not fail.
 *
 * What keeps the space small and loses nothing is said where it is done, marked "Reduction".
 */
#ifndef CHECK
#define CHECKED(n) (1)
#else
#define CHECKED(n) (CHECK==n)
#endif
#define ANY 3     /* as a budget: any number of times */
#ifndef MAXV
#define MAXV 1
#endif
#ifndef MAXEP
#define MAXEP 3
#endif
#ifndef CR
#define CR 0
#endif
#ifndef HC
#define HC 0
#endif
#ifndef CU
#define CU 0
#endif
#ifndef TO
#define TO 0
#endif
#ifndef FZ
#define FZ 0
#endif
#ifndef DE
#define DE 0
#endif
#ifndef HO
#define HO 0
#endif
#ifndef L
#define L 1       /* the lease, in ticks of the primary's clock */
#endif
#ifndef G
#define G 2       /* the promise, in ticks of the standby's clock: the margin is one tick */
#endif
#if MAXV>2 || MAXEP>4
#error "the fields below do not hold that"
#endif
#define P(n) (1-(n))
#define B(n) (1<<(n))

/* Fields, not arrays of bytes: pan packs them to bits, and a state takes a third of the memory. */
typedef Node {
  /* durable */
  unsigned seen : 3;   /* the highest epoch seen; lower ones are refused for ever [4] */
  unsigned began : 3;  /* "I began to serve in this epoch" [8] */
  unsigned data : 2;   /* the block, as it is read */
#ifdef VOLATILE
  unsigned med : 2;    /* the block on the medium, below the cache */
#endif
  bit dirty;           /* the bitmap: the peer may lack this block */
  bit log;             /* the activity log: this block may differ from the peer's */
  bit marked;          /* the host restarted with a volatile cache [11] */
  /* gone with the agent */
  bit up; bit pri;
  unsigned ep : 3;     /* the epoch it is primary of */
  bit con;             /* its end of the link; a primary with con mirrors */
  bit cnt;             /* the peer is counted */
  bit refuse;          /* candidate: grants and accepts nothing [4] */
  bit nodisk;          /* the local disk failed and was detached */
  unsigned lease : 2; unsigned asked : 2; unsigned promise : 2;
                       /* ticks left: of the lease; in which a grant for the last request counts; of our promise */
  unsigned w : 2;      /* the write in flight, 0 none; */
  bit loc; bit ack;    /*   it is on the local disk; on the peer */
  bit owed;            /* a completed write was sent to a peer that did not count, and is unacknowledged */
  bit unfl;            /* the peer has acknowledged a write that it has not flushed */
  bit rsl;             /* the resync holds the block's lock */
  unsigned q : 2; bit qrs; /* a frame accepted, not yet on disk: value; it is resync data */
  /* the record as last read */
  bit fresh; unsigned ke : 3; unsigned ks : 2;
  /* the one CAS under way: kind, state, epoch */
  unsigned ck : 3; unsigned cs : 3; unsigned ce : 3;
  /* a send of it that was given up and may still land; it is of the CAS under way, not of an earlier life's */
  unsigned zk : 3; bit zown;
  /* frames to the peer */
  unsigned mw : 2; unsigned mack : 2; unsigned mrs : 2; bit mhb; bit mgr; bit mra; bit mgo;
#if FZ>0
  bit frozen;
#endif
#ifdef GENERATIONS
  bit gen; bit prop; bit has; bit zprop;
#endif
};
Node N[2];

/* The record. Reduction: versions and nonces are compared for equality only, so instead of numbers that grow every node's `fresh`, `cs`
 * and `zk` say what a comparison would. A CAS whose expected version is gone can never land: its send needs no step of its own. */
unsigned R_ep : 3 = 1;
unsigned R_set : 2 = 3;
#ifdef W_NAMED
bit R_pri;
#endif
#ifdef W_RECWAIT
bit R_pri;
bit named[2];
#endif

#define SHRINK 1
#define GROW 2
#define PROMOTE 3
#define LEAVE 4      /* a primary without a disk takes itself out */
#define SETOF(k,n) ((k)==GROW -> 3 : ((k)==LEAVE -> B(P(n)) : B(n)))

#define SENT 1       /* on its way, may land */
#define LANDED 2     /* the record is this CAS, the answer is on its way */
#define PASSED 3     /* it landed and was overwritten, the answer is on its way */
#define UNSURE 4     /* no answer; a send may still land */
#define INDEED 5     /* no answer of use, and the record is this CAS */
#define NEVER 6      /* it will not land, or not any more: refused */

unsigned nextv : 2 = 1;
unsigned floor : 2;            /* the newest value acknowledged or read */
unsigned flushed : 2;          /* the newest value that a FLUSH was acknowledged for */
#define SPEND(x) if :: x<ANY -> x-- :: else fi
unsigned cr : 2 = CR; unsigned hc : 2 = HC; unsigned cu : 2 = CU; unsigned to : 2 = TO; unsigned fz : 2 = FZ; unsigned de : 2 = DE; unsigned ho : 2 = HO;
unsigned ahead : 2;            /* whose clock has ticked last, 1 or 2; 0: no timer runs anywhere */
bit quiet;                     /* the faults are over (LIVE) */
unsigned t1 : 2; unsigned t2 : 2;   /* used within one step */

/* ---- who may serve [5] ---- */
#ifdef W_LEASEBYSET            /* "alone" by the set as last read, instead of by who is counted */
#define NEEDLEASE(n) ((N[n].ks&B(P(n)))!=0)
#else
#define NEEDLEASE(n) (N[n].cnt)
#endif
#ifdef W_DISKLESS              /* a primary without a disk goes on while the record still names it a holder */
#define DISKOK(n) (!N[n].nodisk || N[n].con)
#else
#define DISKOK(n) (!N[n].nodisk || (N[n].con && N[n].cnt && !(N[n].ks&B(n))))
#endif
#define SERVE(n) (N[n].up && N[n].pri && (!NEEDLEASE(n) || N[n].lease>0) && DISKOK(n))
#define IDLECAS(n) (N[n].up && N[n].cs==0 && N[n].ks!=0)
#ifdef VOLATILE
#define FLUSHLOCAL(n) N[n].med=N[n].data
#define ONMEDIUM(n) (N[n].med==N[n].data)
#define VOL 1
#else
#define FLUSHLOCAL(n) skip
#define ONMEDIUM(n) (1)
#define VOL 0
#endif

/* Generations are compared with the record's only: a node's current one is it (gen), its proposed one is (prop), there is a proposed one
 * (has), and that is the one in the send that was given up (zprop). A grow and a leave keep the record's generation; a peer takes it over
 * before the CAS that adds it. */
#ifdef GENERATIONS
#ifdef W_FRESHGEN    /* each attempt proposes a new generation, instead of the one that was proposed and never adopted */
#define PROPOSE(n) N[n].has=1; N[n].prop=0; N[n].zprop=0
#else
#define PROPOSE(n) if :: !N[n].has -> N[n].has=1; N[n].prop=0; N[n].zprop=0 :: else fi
#endif
#define ADOPT(n) N[n].gen=N[n].prop; N[n].prop=0; N[n].has=0
#define NAMES(n,yes) N[P(n)].gen=0; N[P(n)].prop=0; N[n].gen=0; N[n].prop=yes
#define TAKESGEN(n) N[n].gen=N[P(n)].gen; N[n].has=0; N[n].prop=0
#define CARRIES(n) (N[n].gen || N[n].prop)
#define GIVENUP(n) N[n].zprop=1
#define ZPROP(n) N[n].zprop
#else
#define PROPOSE(n) skip
#define ADOPT(n) skip
#define NAMES(n,yes) skip
#define TAKESGEN(n) skip
#define CARRIES(n) (1)
#define GIVENUP(n) skip
#define ZPROP(n) 0
#endif

/* A CAS by a node that has not read the latest record is refused: it is NEVER from the start. */
inline put(n,EPOCH,KIND) { N[n].ck=KIND; N[n].ce=EPOCH; if :: N[n].fresh -> N[n].cs=SENT :: else -> N[n].cs=NEVER fi }
inline nocas(n) { N[n].ck=0; N[n].cs=0; N[n].ce=0; N[n].zown=0 }
/* Reduction: what is on its way to an end that is closed can never be received (a new session starts with empty queues), so it is
 * forgotten at once, and nothing is sent to a closed end. */
inline deaf(n) { N[P(n)].mw=0; N[P(n)].mack=0; N[P(n)].mrs=0; N[P(n)].mhb=0; N[P(n)].mgr=0; N[P(n)].mra=0; N[P(n)].mgo=0 }
inline drop(n) {
  N[n].con=0; N[n].asked=0; N[n].rsl=0; deaf(n);
  if :: N[n].pri && (N[n].w!=0 || N[n].owed || N[n].unfl) -> N[n].dirty=1 :: else fi;
  N[n].ack=0; N[n].owed=0; N[n].unfl=0 }
inline demote(n) { drop(n); N[n].pri=0; N[n].cnt=0; N[n].lease=0; N[n].w=0; N[n].loc=0; N[n].ep=0 }
inline see(n,EPOCH) { if :: N[n].seen<EPOCH -> N[n].seen=EPOCH :: else fi }

/* ---- a CAS is decided [2, 3, 4, 7, 8] ---- */
inline yes(n) {
  if :: N[n].ck==SHRINK || N[n].ck==PROMOTE -> ADOPT(n) :: else fi;
  if
  :: N[n].ck==SHRINK && N[n].pri && N[n].ep==N[n].ce -> N[n].cnt=0; N[n].lease=0; if :: N[n].w!=0 -> N[n].dirty=1 :: else fi
  :: N[n].ck==GROW && N[n].pri && N[n].ep==N[n].ce -> N[n].cnt=1
  :: N[n].ck==PROMOTE ->
     N[n].pri=1; N[n].ep=N[n].ce; N[n].began=N[n].ce; see(n,N[n].ce);
     N[n].marked=0; N[n].cnt=0; N[n].lease=0; N[n].w=0; N[n].loc=0; N[n].refuse=0; N[P(n)].mgo=0;
     if :: N[n].log -> N[n].dirty=1 :: else fi
#if FZ>0
     ; N[n].frozen=0
#endif
  :: else
  fi }
inline no(n) {
  if
#ifdef W_GUESS       /* "it came to nothing, so the peer need not count" */
  :: N[n].ck==GROW -> N[n].cnt=0; N[n].lease=0
#endif
  :: N[n].ck==PROMOTE -> N[n].refuse=0
  :: else
  fi }

/* ---- the record ---- */
/* The record has become that of kind k by n: whatever else was to replace the old one never will. */
inline written(n,KIND,OURS) {
  if :: KIND==PROMOTE -> R_ep++ :: else fi;
  if :: KIND==PROMOTE || KIND==SHRINK -> NAMES(n,OURS) :: else fi;
  R_set=SETOF(KIND,n);
#if defined(W_NAMED) || defined(W_RECWAIT)
  R_pri=n;
#endif
  N[0].fresh=0; N[1].fresh=0; N[0].zk=0; N[1].zk=0;
  if :: N[P(n)].cs==SENT || N[P(n)].cs==UNSURE || N[P(n)].cs==INDEED -> N[P(n)].cs=NEVER
     :: N[P(n)].cs==LANDED -> N[P(n)].cs=PASSED
     :: else fi }
#define g_land(n) (N[n].cs==SENT)
inline a_land(n) { N[n].cs=LANDED; written(n,N[n].ck,1) }
/* A send that was given up lands. If it is of the CAS under way, that one is refused now, but its nonce is found in the record. */
#define g_zland(n) (N[n].zk!=0)
inline a_zland(n) {
  if :: N[n].cs==SENT || N[n].cs==UNSURE -> if :: N[n].zown -> N[n].cs=INDEED :: else -> N[n].cs=NEVER fi :: else fi;
  N[n].zown=0; written(n,N[n].zk,ZPROP(n)) }
#define g_ok(n) (N[n].up && (N[n].cs==LANDED || N[n].cs==PASSED))
inline a_ok(n) { N[n].ke=N[n].ce; N[n].ks=SETOF(N[n].ck,n); N[n].fresh=(N[n].cs==LANDED); yes(n); nocas(n) }
/* The answer does not come. Reduction: for a CAS that can only be refused this is the refusal. At most one send of a node is under way
 * without an owner: exact as long as no node crashes twice. */
#define g_late(n) (N[n].up && to>0 && (N[n].cs==LANDED || N[n].cs==PASSED || (N[n].cs==SENT && (N[n].zk==0 || N[n].zown))))
inline a_late(n) { SPEND(to);
  if :: N[n].cs==SENT -> N[n].zk=N[n].ck; N[n].zown=1; N[n].cs=UNSURE; GIVENUP(n)
     :: N[n].cs==LANDED -> N[n].cs=INDEED
     :: else -> N[n].cs=NEVER fi }
/* A read, which also decides what was undecided [7]. */
#define g_read(n) (N[n].up && (N[n].cs>=UNSURE || (N[n].cs==0 && !N[n].fresh)))
inline a_read(n) {
  N[n].fresh=1; N[n].ke=R_ep; N[n].ks=R_set;
#ifdef W_RECWAIT
  named[n]=(R_pri==n);
#endif
  if
#ifndef W_GUESS      /* "the old record is there, so it has not landed" */
  :: N[n].cs==UNSURE -> N[n].cs=SENT   /* neither landed nor dead: the same again */
#endif
  :: else ->
     if :: N[n].cs==INDEED -> yes(n)
        :: N[n].cs==NEVER || N[n].cs==UNSURE -> no(n)
#ifdef W_NAMED       /* "the record names me, so I am primary" */
        :: N[n].cs==0 && !N[n].pri && R_pri==n -> drop(n); N[n].pri=1; N[n].ep=R_ep; N[n].q=0; see(n,R_ep)
#endif
        :: else fi;
     nocas(n);
     if :: N[n].pri && R_ep>N[n].ep -> demote(n)
        :: N[n].pri && R_ep<=N[n].ep && (R_set&B(P(n)))!=0 && !N[n].cnt -> N[n].cnt=1
        :: !N[n].pri && R_ep>N[n].seen -> drop(n)
        :: else fi;
     see(n,R_ep)
  fi }

/* ---- clocks and the lease [5] ----
 * Each node has its own clock. They run at the same rate within the margin but tick at different moments: whichever ticks first, after
 * that they alternate, until no timer runs. (lease.pml has clocks of different rate.) A node may stand still for any number of ticks. */
#define RUNS(n) (N[n].lease+N[n].asked+N[n].promise>0)
#ifdef NOPHASE
#define TURN(n) (1)
#else
#define TURN(n) (ahead!=(n)+1)
#endif
#define g_tick(n) (TURN(n) && (RUNS(n) || (ahead==P(n)+1 && RUNS(P(n)))))
inline a_tick(n) {
  if :: N[n].lease>0 -> N[n].lease-- :: else fi;
  if :: N[n].asked>0 -> N[n].asked-- :: else fi;
  if :: N[n].promise>0 -> N[n].promise-- :: else fi;
  ahead=((RUNS(0)||RUNS(1)) -> (n)+1 : 0) }
/* Reduction: a lease of one tick is asked for only when there is none; a renewal before that could not reach further. */
#define g_ask(n) (N[n].up && N[n].pri && N[n].con && N[n].cnt && N[n].lease==0 && N[n].asked==0)
inline a_ask(n) { N[n].mhb=N[P(n)].con; N[P(n)].mgr=0; N[n].asked=L }
#define g_grant(n) (N[n].up && N[n].con && N[P(n)].mhb && !N[n].pri)
inline a_grant(n) { N[P(n)].mhb=0; N[n].promise=G; N[n].mgr=N[P(n)].con }
#define g_granted(n) (N[n].up && N[n].con && N[P(n)].mgr)
inline a_granted(n) { N[P(n)].mgr=0;
#ifdef W_RECEIPT     /* the lease counts from the arrival of the grant */
  if :: N[n].pri -> N[n].lease=L :: else fi;
#else
  if :: N[n].pri -> N[n].lease=N[n].asked :: else fi;
#endif
  N[n].asked=0 }

/* ---- the life of a write ---- */
#ifdef W_RESYNCRACE  /* resync does not hold the lock that writes hold */
#define RSFREE(n) (1)
#define WFREE(n) (1)
#else
#define RSFREE(n) (!N[n].rsl)
#define WFREE(n) (N[n].w==0)
#endif
#define g_write(n) (N[n].up && N[n].pri && N[n].w==0 && nextv<=MAXV && RSFREE(n) && !N[n].owed && N[n].mw==0 && !(N[n].nodisk && !N[n].con) && !N[n].refuse)
inline a_write(n) { N[n].w=nextv; nextv++; N[n].loc=0; N[n].ack=0; N[n].log=1; if :: N[n].con && N[P(n)].con -> N[n].mw=N[n].w :: else fi }
#define g_local(n) (N[n].up && N[n].pri && N[n].w!=0 && !N[n].loc)
inline a_local(n) { N[n].loc=1; if :: !N[n].nodisk -> N[n].data=N[n].w :: else fi }
#define g_accept(n) (N[n].up && N[n].con && N[P(n)].mw!=0 && N[n].q==0 && !N[n].pri)
inline a_accept(n) { N[n].q=N[P(n)].mw; N[n].qrs=0; N[P(n)].mw=0 }
#define g_accrs(n) (N[n].up && N[n].con && N[P(n)].mrs!=0 && N[n].q==0 && !N[n].pri)
inline a_accrs(n) { N[n].q=N[P(n)].mrs; N[n].qrs=1; N[P(n)].mrs=0 }
#define g_apply(n) (N[n].up && N[n].q!=0)
inline a_apply(n) {
  if
  :: !N[n].qrs -> N[n].data=N[n].q; if :: N[n].con && N[P(n)].con -> N[n].mack=N[n].q :: else fi
  :: else -> N[n].data=N[n].q-1;   /* resync data is the value plus one: 0 is none */
#ifndef W_RESYNCFLUSH  /* the target acknowledges resync data before it has flushed it */
     FLUSHLOCAL(n);
#endif
     if :: N[n].con && N[P(n)].con -> N[n].mra=1 :: else fi
  fi;
  N[n].q=0; N[n].qrs=0 }
#define g_acked(n) (N[n].up && N[n].con && N[P(n)].mack!=0)
inline a_acked(n) {
  if :: N[n].pri && N[n].w==N[P(n)].mack -> N[n].ack=1
     :: else -> if :: N[n].owed -> N[n].unfl=VOL :: else fi; N[n].owed=0 fi;
  N[P(n)].mack=0 }
#ifdef W_ACKEARLY    /* alone before the smaller set is decided */
#define ENOUGH(n) (N[n].ack || !N[n].cnt || !N[n].con)
#else
#define ENOUGH(n) (N[n].ack || !N[n].cnt)
#endif
#ifdef W_NOHOLD      /* a write that the peer has acknowledged completes while a shrink is undecided */
#define HOLD(n) (0)
#else
#define HOLD(n) (N[n].ck==SHRINK)
#endif
#ifdef W_DISKLESS
#define KEPT(n) (1)
#else
#define KEPT(n) (!N[n].nodisk || (N[P(n)].con && N[P(n)].up))   /* the peer keeps the dirty bits for a primary without a disk */
#endif
#define g_complete(n) (N[n].up && N[n].pri && N[n].w!=0 && N[n].loc && ENOUGH(n) && SERVE(n) && KEPT(n) && !HOLD(n))
inline a_complete(n) {
#ifndef W_DISKLESS
  if :: N[n].nodisk -> N[P(n)].dirty=1 :: else fi;
#endif
  if :: floor<N[n].w -> floor=N[n].w :: else fi;
  if :: N[n].ack -> N[n].unfl=VOL
     :: !N[n].ack && N[n].con -> N[n].owed=1
     :: else -> N[n].dirty=1 fi;
  N[n].w=0; N[n].loc=0; N[n].ack=0 }
#define DATA(n) (N[n].nodisk -> N[P(n)].data : N[n].data)
#ifdef W_READDIRTY   /* reads of a block with a write in flight */
#define g_get(n) (SERVE(n))
#else
#define g_get(n) (SERVE(n) && N[n].w==0 && DATA(n)!=floor)
#endif
/* Reduction: a read of what is the floor already changes nothing. */
inline a_get(n) { if :: CHECKED(1) && DATA(n)<floor -> assert(!1) :: else -> floor=DATA(n) fi }
/* resync, and the log */
#define g_resync(n) (N[n].up && N[n].pri && N[n].con && N[n].dirty && !N[n].rsl && N[n].mrs==0 && WFREE(n) && !N[n].nodisk && !N[n].owed)
inline a_resync(n) { N[n].rsl=1; if :: N[P(n)].con -> N[n].mrs=N[n].data+1 :: else fi }
#define g_resynced(n) (N[n].up && N[n].con && N[P(n)].mra)
inline a_resynced(n) { N[P(n)].mra=0;
  if :: N[n].rsl -> N[n].rsl=0; N[n].dirty=0; if :: N[P(n)].con && !N[P(n)].pri && N[P(n)].seen==N[n].ep -> N[P(n)].log=0; N[P(n)].dirty=0 :: else fi
     :: else fi }
#ifdef W_LOGFLUSH    /* a log entry is retired before the flush on every copy */
#define RETIRE(n) (1)
#else
#define RETIRE(n) (ONMEDIUM(n) && !N[n].unfl)
#endif
#define g_retire(n) (N[n].up && N[n].pri && N[n].log && N[n].w==0 && !N[n].owed && RETIRE(n))
inline a_retire(n) { N[n].log=0 }

/* ---- membership [2, 3, 4, 8, 11] ---- */
#define g_shrink(n) (IDLECAS(n) && N[n].pri && N[n].cnt && !N[n].con && !N[n].nodisk)
inline a_shrink(n) {
#ifndef W_CASFLUSH   /* no flush before a CAS that leaves only me */
  FLUSHLOCAL(n);
#endif
  PROPOSE(n); put(n,N[n].ep,SHRINK) }
#ifdef W_COUNTEARLY  /* counted before the writes already sent are acknowledged */
#define SETTLED(n) (1)
#else
#ifdef VOLATILE
#define SETTLED(n) (!N[n].owed && N[P(n)].con && N[P(n)].up && N[P(n)].q==0)
#else
#define SETTLED(n) (!N[n].owed)
#endif
#endif
#define g_grow(n) (IDLECAS(n) && N[n].pri && !(N[n].ks&B(P(n))) && N[n].con && !N[n].dirty && !N[n].rsl && SETTLED(n))
inline a_grow(n) {
#ifndef W_GROWFLUSH  /* no flush of both before the CAS that adds one */
  FLUSHLOCAL(n); FLUSHLOCAL(P(n));
#endif
  if :: N[P(n)].con -> N[P(n)].marked=0; TAKESGEN(P(n)) :: else fi;
#ifndef W_GROWEARLY  /* in the record before it is counted */
  N[n].cnt=1;
#endif
  put(n,N[n].ep,GROW) }
#ifdef W_NOMARK      /* a host restart does not end membership */
#define ELIGIBLE(n) (1)
#define MARKSOK(n) (1)
#else
#define ELIGIBLE(n) (!N[n].marked || N[n].ks==B(n) || (N[P(n)].marked && N[n].up && N[P(n)].up))
#define MARKSOK(n) (!(N[P(n)].marked && N[n].cnt))
#endif
#ifdef W_UNDRAINED   /* frames accepted before the promotion may reach the disk after it */
#define DRAINED(n) (1)
#else
#define DRAINED(n) (N[n].q==0)
#endif
#ifdef W_OUTSIDER    /* a node that is not in the set promotes */
#define MEMBER(n) (1)
#else
#define MEMBER(n) ((N[n].ks&B(n))!=0 && CARRIES(n))
#endif
#ifdef W_RECWAIT     /* whoever the record names waits for nothing, whether it began or not */
#define WAITED(n) (N[n].promise==0 || named[n])
#else
#define WAITED(n) (N[n].promise==0 || N[n].ke==N[n].began)
#endif
#ifdef W_FROZENSTAYS /* a node that demoted itself waits for somebody else */
#define STARTOVER(n) (!N[n].frozen)
#else
#define STARTOVER(n) (1)
#endif
#define g_promote(n) (IDLECAS(n) && !N[n].pri && WAITED(n) && MEMBER(n) && (quiet || N[n].ke<MAXEP) && DRAINED(n) && ELIGIBLE(n) && !N[n].nodisk && STARTOVER(n))
inline a_promote(n) {
#ifndef W_CASFLUSH
  FLUSHLOCAL(n);
#endif
#ifndef W_NOREFUSE   /* the candidate goes on granting and accepting */
  N[n].refuse=1; drop(n);
#endif
  PROPOSE(n); put(n,N[n].ke+1,PROMOTE) }
/* A session begins: the accepted frames of the old one are on disk, and the standby has seen no higher epoch. */
#ifdef W_OLDEPOCH    /* a primary of a lower epoch is followed */
#define EPOCHOK(n) (1)
#else
#define EPOCHOK(n) (N[n].ep>=N[P(n)].seen)
#endif
#ifdef W_UNDRAINED
#define OLDDONE(n) (1)
#else
#define OLDDONE(n) (N[P(n)].q==0)
#endif
#define g_session(n) (N[n].up && N[P(n)].up && !N[n].con && !N[P(n)].con && N[n].pri && !N[P(n)].pri && EPOCHOK(n) && !N[P(n)].refuse && MARKSOK(n) && OLDDONE(n))
inline a_session(n) {
  N[n].con=1; N[P(n)].con=1; see(P(n),N[n].ep);
#if FZ>0
  N[P(n)].frozen=0;
#endif
  if :: N[P(n)].dirty || N[P(n)].log -> N[n].dirty=1 :: else fi;
  if :: N[n].w!=0 -> N[n].mw=N[n].w; N[n].ack=0 :: else fi }
#define g_cut(n) (N[n].con && (cu>0 || !N[P(n)].con || !N[P(n)].up))
inline a_cut(n) { if :: N[P(n)].con && N[P(n)].up -> SPEND(cu) :: else fi; drop(n) }
/* The freeze is over: errors to the clients, and Secondary [6]. */
#define g_freeze(n) (N[n].up && N[n].pri && N[n].cnt && N[n].lease==0 && fz>0)
inline a_freeze(n) { SPEND(fz); demote(n);
#if FZ>0
  N[n].frozen=1
#endif
  }

/* ---- faults ---- */
inline gone(n) {
  if :: N[n].cs==SENT && N[n].zk==0 -> N[n].zk=N[n].ck; GIVENUP(n) :: else fi;
  demote(n); nocas(n);
  N[n].up=0; N[n].fresh=0; N[n].ke=0; N[n].ks=0; N[n].promise=0; N[n].q=0; N[n].qrs=0; N[n].refuse=0; N[n].nodisk=0;
#if FZ>0
  N[n].frozen=0;
#endif
#ifdef W_RECWAIT
  named[n]=0;
#endif
  if :: !RUNS(0) && !RUNS(1) -> ahead=0 :: else fi }
/* A crash leaves the bitmap as it was: what only memory knew is forgotten. */
#define g_crash(n) (N[n].up && cr>0)
inline a_crash(n) { SPEND(cr); t1=N[n].dirty; gone(n); N[n].dirty=t1; t1=0 }
#ifdef VOLATILE
#define g_power(n) (N[n].up && hc>0)
inline a_power(n) { SPEND(hc); t1=N[n].dirty; gone(n); N[n].dirty=t1; t1=0; N[n].data=N[n].med; N[n].marked=1;
  /* When every member has lost power, only what was flushed is owed, and every member must have that. Until then what the others have is. */
  t2=0;
  if :: (R_set&1) && !N[0].marked && N[0].data>t2 -> t2=N[0].data :: else fi;
  if :: (R_set&2) && !N[1].marked && N[1].data>t2 -> t2=N[1].data :: else fi;
  if :: (!(R_set&1) || N[0].marked) && (!(R_set&2) || N[1].marked) ->
        if :: ((R_set&1) && N[0].data<flushed) || ((R_set&2) && N[1].data<flushed) -> assert(!6) :: else fi; t2=flushed
     :: else fi;
  if :: t2<flushed -> assert(!6) :: t2>=flushed && t2<floor -> floor=t2 :: else fi; t2=0 }
#define g_destage(n) (N[n].med!=N[n].data)
inline a_destage(n) { N[n].med=N[n].data }
#define g_flush(n) (SERVE(n) && N[n].w==0 && !N[n].owed && (N[n].med!=N[n].data || N[n].unfl || flushed<N[n].data) && (!N[n].cnt || (N[n].con && N[P(n)].con && N[P(n)].up && N[P(n)].q==0)))
inline a_flush(n) { N[n].med=N[n].data; if :: N[n].cnt -> N[P(n)].med=N[P(n)].data; N[n].unfl=0 :: else fi; if :: flushed<N[n].data -> flushed=N[n].data :: else fi }
#endif
/* It comes back as Secondary, and waits the longest promise it ever gave [8]. */
#define g_start(n) (!N[n].up)
#ifdef W_NOWAIT      /* a restarted node waits for nothing */
inline a_start(n) { N[n].up=1 }
#else
inline a_start(n) { N[n].up=1; N[n].promise=G }
#endif
#define g_eio(n) (N[n].up && N[n].pri && !N[n].nodisk && de>0 && N[n].cnt && N[n].con && !N[n].dirty && !N[n].rsl)
inline a_eio(n) { SPEND(de); N[n].nodisk=1 }
#define g_leave(n) (IDLECAS(n) && N[n].pri && N[n].nodisk && N[n].ks==3)
inline a_leave(n) { put(n,N[n].ep,LEAVE) }

/* ---- planned move [9] ---- */
#define g_move(n) (SERVE(n) && ho>0 && N[n].cnt && N[n].con && N[n].w==0 && !N[n].owed && !N[n].dirty && N[P(n)].q==0 && IDLECAS(n) && !N[n].nodisk)
inline a_move(n) { SPEND(ho); FLUSHLOCAL(n); FLUSHLOCAL(P(n)); N[n].unfl=0; N[n].asked=0; N[n].pri=0; N[n].mgo=N[P(n)].con;
#ifndef W_RESUME     /* the old primary may resume on its old lease */
  N[n].cnt=0; N[n].lease=0; N[n].ep=0;
#endif
  }
#define g_go(n) (N[n].up && N[n].con && N[P(n)].mgo)
inline a_go(n) { N[P(n)].mgo=0; N[n].promise=0 }
#define g_resume(n) (N[n].up && !N[n].pri && N[n].ep!=0 && N[n].con && N[n].cs==0)
inline a_resume(n) { N[n].pri=1 }

/* ---- the steps ---- */
#define SHOW(n) printf(" %d | record e%d set%d; up %d%d pri %d%d ep %d%d counted %d%d lease %d%d promise %d%d; data %d%d w %d%d dirty %d%d log %d%d cas %d%d%d%d\n", \
  n,R_ep,R_set,N[0].up,N[1].up,N[0].pri,N[1].pri,N[0].ep,N[1].ep,N[0].cnt,N[1].cnt,N[0].lease,N[1].lease,N[0].promise,N[1].promise, \
  N[0].data,N[1].data,N[0].w,N[1].w,N[0].dirty,N[1].dirty,N[0].log,N[1].log,N[0].ck,N[0].cs,N[1].ck,N[1].cs)
#define X(name) :: d_step { g_##name(0) -> a_##name(0); printf(#name); SHOW(0) } :: d_step { g_##name(1) -> a_##name(1); printf(#name); SHOW(1) }
#define Y(name,n) if :: g_##name(n) -> a_##name(n) :: else fi;
#define YY(name) Y(name,0) Y(name,1)

#define HOLDS(n) (!(R_set&B(n)) || N[n].marked || N[n].data>=floor)
#define CALM(n) (N[0].up && N[1].up && N[n].pri && N[n].ep==R_ep && R_set==3 && N[n].cnt && N[0].con && N[1].con && N[n].w==0 && !N[n].dirty && !N[n].rsl && \
  !N[n].owed && N[P(n)].q==0 && N[n].mw==0 && N[n].mrs==0 && !N[n].nodisk)

/* ---- progress ----
 * The faults are over. Everybody who is down starts (-DONLY=n: only n is left), sessions that are broken at one end end at the other, and
 * all get their turn, round after round. -DLIVE=1: node 0 claims before node 1, and sends that were given up never land; -DLIVE=2:
 * node 1 does, and they land before anything else. */
inline fair(i) {
  quiet=1;
#ifdef ONLY
  if :: N[1-ONLY].up -> gone(1-ONLY) :: else fi;
#endif
#if LIVE==2
  YY(zland)
#endif
  i=0;
  do
  :: i<48 ->
#ifdef ONLY
     Y(start,ONLY)
#else
     YY(start)
#endif
     if :: i%4==0 -> a_tick(0); a_tick(1) :: else fi;   /* a frame is faster than a tick */
     if :: N[0].con!=N[1].con || (N[0].con && N[0].pri==N[1].pri) -> drop(0); drop(1) :: else fi;
     YY(apply) YY(ask) YY(grant) YY(granted) YY(accept) YY(acked) YY(local) YY(complete) YY(accrs) YY(resynced) YY(resync)
     YY(land) YY(ok) YY(read) YY(session)
#if DE>0
     YY(leave)
#endif
     YY(shrink) YY(grow)
     if :: !N[0].pri && !N[1].pri -> Y(promote,LIVE-1) Y(promote,2-LIVE) :: else fi;
     if :: SERVE(0) || SERVE(1) -> i=100 :: else -> i++ fi
  :: else -> break
  od;
#ifdef ONLY          /* the other one is gone for good: only a member that is not marked owes anything */
  if :: i<100 && (R_set&B(ONLY)) && !N[ONLY].marked -> assert(!7) :: else fi
#else
  /* A set of one whose disk failed waits for a new disk or for an operator. */
  if :: i<100 && !(R_set==1 && N[0].nodisk) && !(R_set==2 && N[1].nodisk) -> assert(!7) :: else fi
#endif
  }
/* All ends are one state. */
inline blank(n) {
  N[n].seen=0; N[n].began=0; N[n].data=0; N[n].dirty=0; N[n].log=0; N[n].marked=0; N[n].up=0; N[n].pri=0; N[n].ep=0; N[n].con=0; N[n].cnt=0; N[n].refuse=0;
  N[n].nodisk=0; N[n].lease=0; N[n].asked=0; N[n].promise=0; N[n].w=0; N[n].loc=0; N[n].ack=0; N[n].owed=0; N[n].unfl=0; N[n].rsl=0; N[n].q=0; N[n].qrs=0;
  N[n].fresh=0; N[n].ke=0; N[n].ks=0; nocas(n); N[n].zk=0; deaf(n);
#ifdef VOLATILE
  N[n].med=0;
#endif
#ifdef GENERATIONS
  N[n].gen=0; N[n].prop=0; N[n].has=0; N[n].zprop=0;
#endif
#if FZ>0
  N[n].frozen=0;
#endif
  }
inline end() { blank(0); blank(1); R_ep=0; R_set=0; nextv=0; floor=0; flushed=0; cr=0; hc=0; cu=0; to=0; fz=0; de=0; ho=0; ahead=0; i=0 }

active proctype sys() {
  byte i;
  d_step { N[0].up=1; N[1].up=1; N[0].pri=1; N[0].ep=1; N[0].began=1; N[0].seen=1; N[1].seen=1; N[0].fresh=1; N[1].fresh=1; N[0].ke=1; N[1].ke=1;
    N[0].ks=3; N[1].ks=3; N[0].cnt=1; N[0].con=1; N[1].con=1;
#ifdef GENERATIONS
    N[0].gen=1; N[1].gen=1
#endif
  }
  do
  :: CHECKED(2) && SERVE(0) && SERVE(1) -> assert(!2)
  :: CHECKED(4) && (!HOLDS(0) || !HOLDS(1)) -> assert(!4)
  :: CHECKED(5) && (CALM(0) || CALM(1)) && N[0].data!=N[1].data -> assert(!5)
#ifdef VOLATILE
  :: ((R_set&1) && N[0].med<flushed) || ((R_set&2) && N[1].med<flushed) -> assert(!6)
#endif
#ifdef GENERATIONS
  :: (R_set==1 && !CARRIES(0)) || (R_set==2 && !CARRIES(1)) -> assert(!8)
#endif
  X(land) X(zland) X(ok) X(late) X(read)
  X(tick) X(ask) X(grant) X(granted)
  X(write) X(local) X(accept) X(accrs) X(apply) X(acked) X(complete) X(get)
  X(resync) X(resynced) X(retire)
  X(shrink) X(grow) X(promote) X(session) X(cut) X(crash) X(start)
#if FZ>0
  X(freeze)
#endif
#ifdef VOLATILE
  X(power) X(destage) X(flush)
#endif
#if DE>0
  X(eio) X(leave)
#endif
#if HO>0
  X(move) X(go)
#ifdef W_RESUME
  X(resume)
#endif
#endif
#ifdef LIVE
  :: d_step { !quiet -> fair(i); end() }; goto over
#endif
  od;
over:
  do :: false od
}
