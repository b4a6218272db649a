/* triple.pml: three nodes, one block, without leases and with a record that changes at once: survivors of a lost primary that differ, and who
 * keeps dirty bits for a node that is away [10]. pair.pml has the undecided CAS, lease.pml the leases of three nodes.
 *
 * Any node may crash at any time, CR times in all (ANY: as often as it likes), and come back; a resync is one step.
 * S1 reads never go back; S4 every node in the set holds every acknowledged write; S5 members with nothing under way are equal.
 * -DW_x takes one part of the rule away; each has to be refuted.
 */
#define ANY 7
#ifndef CR
#define CR 3
#endif
#ifndef MAXV
#define MAXV 2
#endif
#ifdef W_FORGET      /* survivors do not remember what may not be complete everywhere, nor does it become bits on promotion */
#define REMEMBERS 0
#else
#define REMEMBERS 1
#endif
#if defined(W_MEMORY) || defined(W_FORGET) /* they remember in memory only: the log is the primary's alone */
#define EVERYLOG 0
#else
#define EVERYLOG 1
#endif
#ifdef W_ONEBITMAP   /* the primary alone keeps bits for a node that is away */
#define EVERYBITMAP 0
#else
#define EVERYBITMAP 1
#endif
#ifdef W_NOTAKEOVER  /* a member that comes back does not take over the primary's bits before it lets go of its own log */
#define TAKEOVER 0
#else
#define TAKEOVER 1
#endif
#define B(n) (1<<(n))
#define ALL 7
#define NOBODY 3

typedef Node {
  bit up;
  unsigned data : 2;
  unsigned dirty : 3;          /* the bitmap: who may lack the block */
  bit log;                     /* the activity log: this block may differ elsewhere */
  bit memory;                  /* the same, gone with the agent */
};
Node N[3];
unsigned set : 3 = ALL;        /* the record */
unsigned pri : 2;
unsigned w : 2; unsigned sent : 3; unsigned has : 3;  /* the write in flight, whom it was sent to, who has it */
unsigned nextv : 3 = 1;
unsigned floor : 2;            /* the newest value acknowledged or read */
unsigned cr : 3 = CR;

#define SERVES (pri!=NOBODY && N[pri].up)
#define MEMBER(n) ((set&B(n))!=0)
#define UP ((N[0].up->1:0)|(N[1].up->2:0)|(N[2].up->4:0))
/* What the primary keeps for others, and this member does not. */
#define MISSING(n) ((N[pri].dirty&~B(n))&~N[n].dirty)

#define SHOW(what,n) printf(what); printf(" %d | set %d pri %d up %d%d%d data %d%d%d w %d has %d dirty %d,%d,%d log %d%d%d memory %d%d%d\n", \
  n,set,pri,N[0].up,N[1].up,N[2].up,N[0].data,N[1].data,N[2].data,w,has,N[0].dirty,N[1].dirty,N[2].dirty,N[0].log,N[1].log,N[2].log,N[0].memory,N[1].memory,N[2].memory)
#define KEEP(n) if :: EVERYBITMAP && N[n].up && MEMBER(n) -> N[n].dirty=N[n].dirty|(ALL&~has) :: else fi;
#define ACT(n) \
  :: d_step { SERVES && pri!=n && w!=0 && (sent&B(n)) && N[n].up && !(has&B(n)) -> \
       N[n].data=w; has=has|B(n); N[n].memory=REMEMBERS; N[n].log=N[n].log|EVERYLOG; SHOW("apply",n) } \
  :: d_step { N[n].memory && SERVES && pri!=n && w==0 && N[n].up && MEMBER(n) && !(N[pri].dirty&B(n)) -> N[n].memory=0; SHOW("complete everywhere",n) } \
  :: d_step { SERVES && n!=pri && !N[n].up && MEMBER(n) -> set=set&~B(n); SHOW("shrink",n) } \
  :: d_step { !SERVES && N[n].up && MEMBER(n) -> pri=n; set=B(n); w=0; has=0; sent=0; \
       if :: N[n].memory || N[n].log -> N[n].dirty=ALL&~B(n) :: else fi; SHOW("promote",n) } \
  :: d_step { SERVES && n!=pri && N[n].up && !MEMBER(n) && w==0 -> \
       if :: (N[pri].dirty&B(n)) || N[n].memory || N[n].log -> N[n].data=N[pri].data :: else fi; \
       N[pri].dirty=N[pri].dirty&~B(n); N[n].dirty=(EVERYBITMAP -> N[pri].dirty : 0); N[n].memory=0; N[n].log=0; set=set|B(n); SHOW("resync and grow",n) } \
  :: d_step { SERVES && w==0 && N[n].log && pri==n -> N[n].log=0; SHOW("retire",n) } \
  :: d_step { SERVES && w==0 && N[n].log && pri!=n && N[n].up && MEMBER(n) && !N[n].memory && (!TAKEOVER || MISSING(n)==0) -> N[n].log=0; SHOW("retire",n) } \
  :: d_step { TAKEOVER && SERVES && pri!=n && N[n].up && MEMBER(n) && MISSING(n)!=0 -> N[n].dirty=N[n].dirty|(N[pri].dirty&~B(n)); SHOW("take over bits",n) } \
  :: d_step { N[n].up && cr>0 -> N[n].up=0; N[n].memory=0; if :: pri==n -> pri=NOBODY; w=0; has=0; sent=0 :: else fi; \
       if :: cr<ANY -> cr-- :: else fi; SHOW("crash",n) } \
  :: d_step { !N[n].up -> N[n].up=1; SHOW("restart",n) } \
  :: MEMBER(n) && N[n].data<floor -> assert(!4)
#define EQUAL(a,b) :: SERVES && w==0 && MEMBER(a) && MEMBER(b) && N[a].data!=N[b].data -> assert(!5)

active proctype sys() {
  d_step { N[0].up=1; N[1].up=1; N[2].up=1 }
  do
  :: d_step { SERVES && w==0 && nextv<=MAXV -> w=nextv; nextv++; has=0; sent=UP; N[pri].log=1; SHOW("write",pri) }
  :: d_step { SERVES && w!=0 && !(has&B(pri)) -> N[pri].data=w; has=has|B(pri); SHOW("local",pri) }
  :: d_step { SERVES && w!=0 && (set&~has)==0 -> floor=w; N[pri].dirty=N[pri].dirty|(ALL&~has); KEEP(0) KEEP(1) KEEP(2) w=0; has=0; sent=0; SHOW("acknowledge",pri) }
  :: d_step { SERVES && w==0 && N[pri].data!=floor -> if :: N[pri].data<floor -> assert(!1) :: else -> floor=N[pri].data fi; SHOW("read",pri) }
  ACT(0) ACT(1) ACT(2)
  EQUAL(0,1) EQUAL(0,2) EQUAL(1,2)
  od
}
